"""An ONNX file gives the answers of the network that it was made from; so does the one in the page."""

import pytest
import torch
from conftest import ROOT, assert_one_line, optional

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


def test_the_file_is_whole_takes_any_batch_and_names_no_path(whole_run, tmp_path, capsys):
    out, wrong = tmp_path / "net.onnx", tmp_path / "net.pt"  # which might be a checkpoint
    with pytest.raises(SystemExit, match="2"):
        export.main([str(whole_run / "best.pt"), "--out", str(wrong)])
    assert_one_line(capsys.readouterr(), f"found {wrong}, expected a name that ends in .onnx", name="export.py")
    assert export.main([str(whole_run / "best.pt"), "--out", str(out)]) == 0
    content = out.read_bytes()
    assert [*tmp_path.iterdir()] == [out]
    assert b".py" not in content and str(ROOT).encode() not in content
    net = load_net(whole_run / "best.pt")
    for count in (1, 7):
        images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        assert_answers(content, images, predict(net, images, "fp32"))
