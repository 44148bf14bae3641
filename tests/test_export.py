"""An ONNX file gives the answers of the network that it was made from; so does the one in the page."""

import json
import math

import pytest
import torch
from conftest import DIGITS, ROOT, assert_one_line, optional, run

from experiment.checkpoint import Checkpoint, load_net
from experiment.datasets import load_data
from study import export
from train import predict


@pytest.fixture
def exporter():
    for package in ("onnx", "onnxscript"):
        optional(package)


def assert_answers(content, images, expected):
    """onnxruntime's logits for the ONNX file `content` are those `expected`, up to rounding."""
    session = optional("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_the_file_is_whole_takes_any_batch_and_names_no_path(exporter, whole_run, tmp_path, capsys):
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


def test_the_temperature_is_that_of_logits_whose_probabilities_are_known(tmp_path, monkeypatch):
    assert run(*DIGITS, "--epochs", 1, "--recipe", "tiny", "--holdout", 700, "--out", tmp_path / "run") == 0
    labels = load_data(Checkpoint.load(tmp_path / "run" / "last.pt").settings).holdout.labels
    fair = 4 * torch.nn.functional.one_hot(labels, 10) + torch.zeros(700, 10)
    wrong = torch.randperm(700)[: round(700 * 9 / (9 + math.exp(4)))]  # as many as such logits say
    fair[wrong] = fair[wrong].roll(1, 1)
    monkeypatch.setattr(export, "predict", lambda net, images, precision: 0.6 * fair)
    (tmp_path / "tiny.json").write_text('{"correct": 1}')
    file = export.fit_temperature(tmp_path / "run", tmp_path)
    about = json.loads(file.read_text())
    assert about["correct"] == 1 and about["temperature"] == pytest.approx(0.6, abs=0.02)
