"""An ONNX file gives the answers of the network that it was made from; so does the one in the page."""

import base64
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, optional
from test_weights import published

from experiment.checkpoint import load_net
from study import export
from train import predict


@pytest.fixture(autouse=True)
def exporter():
    for package in ("onnx", "onnxscript"):
        optional(package)


def assert_answers(content, images, expected):
    """onnxruntime's logits for the ONNX file `content` are those `expected`, up to rounding."""
    session = optional("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_the_file_is_whole_takes_any_batch_and_names_no_path(whole_run, tmp_path):
    out = tmp_path / "net.onnx"
    assert export.main([str(whole_run / "best.pt"), "--out", str(out)]) == 0
    content = out.read_bytes()
    assert [*tmp_path.iterdir()] == [out]
    assert b".py" not in content and str(ROOT).encode() not in content
    net = load_net(whole_run / "best.pt")
    for count in (1, 7):
        images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        assert_answers(content, images, predict(net, images, "fp32"))


def test_every_test_image_gets_the_same_answer_by_a_new_file_and_by_the_page(mnist_test, monkeypatch):
    net, logits = published("best")
    model = json.loads(export.PAGE.read_text().removeprefix("const MODEL = ").removesuffix(";\n"))
    for content in (export.to_onnx(net), base64.b64decode(model["onnx"])):
        assert_answers(content, mnist_test.images, logits)
    monkeypatch.setattr(export, "to_onnx", lambda net: b"")  # its bytes differ between versions of the exporter
    assert {**model, "onnx": ""} == export.for_page(net, mnist_test, logits)


def test_a_missing_package_is_named(whole_run, tmp_path):
    script = "import sys; sys.modules['onnxscript'] = None; from study import export; sys.exit(export.main())"
    command = [sys.executable, "-c", script, str(whole_run / "best.pt"), "--out", str(tmp_path / "net.onnx")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    expected = "export.py: error: onnxscript is missing; pip install -r requirements-optional.txt\n"
    assert (process.returncode, process.stderr) == (2, expected) and not [*tmp_path.iterdir()]
