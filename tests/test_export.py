"""An ONNX file gives the answers of the network that it was made from; so does the one in the page."""

import base64
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, optional

import export
from experiment.checkpoint import Checkpoint
from experiment.weights import WEIGHTS, load_net


@pytest.fixture(autouse=True)
def exporter():
    for package in ("onnx", "onnxscript"):
        optional(package)


def assert_answers_alike(content, net, images):
    """onnxruntime's logits for the ONNX file `content` are those of `net` up to rounding."""
    session = optional("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    with torch.inference_mode():
        expected = torch.cat([net(batch) for batch in images.split(1000)])
    difference = (found - expected).abs().max().item()
    print(f"largest difference of logits: {difference:.1e}")
    assert difference < 1e-4 and torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", ["default", "best", "tiny"])
def test_every_test_image_gets_the_same_answer(mnist_test, name):
    net = load_net(WEIGHTS / f"{name}.pth")
    assert_answers_alike(export.to_onnx(net), net, mnist_test.images)


def test_the_file_is_whole_takes_any_batch_and_names_no_path(whole_run, tmp_path):
    out = tmp_path / "net.onnx"
    assert export.main([str(whole_run / "best.pt"), "--out", str(out)]) == 0
    content = out.read_bytes()
    assert [*tmp_path.iterdir()] == [out]
    assert b".py" not in content and str(ROOT).encode() not in content
    for count in (1, 7):
        images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        assert_answers_alike(content, Checkpoint.load(whole_run / "best.pt").net(), images)


def test_the_page_is_that_of_the_best_weights(mnist_test, monkeypatch):
    net = load_net(WEIGHTS / "best.pth")
    model = json.loads(export.PAGE.read_text().removeprefix("const MODEL = ").removesuffix(";\n"))
    assert_answers_alike(base64.b64decode(model["onnx"]), net, mnist_test.images)
    monkeypatch.setattr(export, "to_onnx", lambda net: b"")  # its bytes differ between versions of the exporter
    assert {**model, "onnx": ""} == export.for_page(net, mnist_test)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(whole_run, tmp_path, package):
    script = f"import sys; sys.modules['{package}'] = None; import export; sys.exit(export.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, str(whole_run / "best.pt"), "--out", str(tmp_path / "net.onnx")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    expected = f"export.py: error: {package} is missing; pip install -r requirements-optional.txt\n"
    assert (process.returncode, process.stderr) == (2, expected) and not [*tmp_path.iterdir()]
