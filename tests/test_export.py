"""An ONNX file gives the answers of the network that it was made from; so does the one in the page."""

import base64
import functools
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, optional

from experiment.checkpoint import WEIGHTS, load_net
from experiment.datasets import load_mnist
from study import export


@pytest.fixture(autouse=True)
def exporter():
    for package in ("onnx", "onnxscript"):
        optional(package)


@functools.cache
def trained(name):
    """The Net of weights/NAME.pth, and its logits for MNIST's test images."""
    net = load_net(WEIGHTS / f"{name}.pth")
    return net, export.answers(net, load_mnist().test.images)


def assert_answers(content, images, expected):
    """onnxruntime's logits for the ONNX file `content` are those `expected`, up to rounding."""
    session = optional("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    difference = (found - expected).abs().max().item()
    print(f"largest difference of logits: {difference:.1e}")
    assert difference < 1e-4 and torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", ["best", "default"])
def test_every_test_image_gets_the_same_answer(mnist_test, name):
    net, logits = trained(name)
    assert_answers(export.to_onnx(net), mnist_test.images, logits)


def test_the_file_is_whole_takes_any_batch_and_names_no_path(whole_run, tmp_path):
    out = tmp_path / "net.onnx"
    assert export.main([str(whole_run / "best.pt"), "--out", str(out)]) == 0
    content = out.read_bytes()
    assert [*tmp_path.iterdir()] == [out]
    assert b".py" not in content and str(ROOT).encode() not in content
    net = load_net(whole_run / "best.pt")
    for count in (1, 7):
        images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        assert_answers(content, images, export.answers(net, images))


def test_the_page_is_that_of_the_best_weights(mnist_test, monkeypatch):
    net, logits = trained("best")
    model = json.loads(export.PAGE.read_text().removeprefix("const MODEL = ").removesuffix(";\n"))
    assert_answers(base64.b64decode(model["onnx"]), mnist_test.images, logits)
    monkeypatch.setattr(export, "to_onnx", lambda net: b"")  # its bytes differ between versions of the exporter
    assert {**model, "onnx": ""} == export.for_page(net, mnist_test, logits)


def test_a_missing_package_is_named(whole_run, tmp_path):
    script = "import sys; sys.modules['onnxscript'] = None; import export; sys.exit(export.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, str(whole_run / "best.pt"), "--out", str(tmp_path / "net.onnx")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    expected = "export.py: error: onnxscript is missing; pip install -r requirements-optional.txt\n"
    assert (process.returncode, process.stderr) == (2, expected) and not [*tmp_path.iterdir()]
