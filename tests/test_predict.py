"""predict.py: every picture gets an answer, or one line that says why not."""

import json
import sys

import numpy as np
import pytest
from conftest import assert_one_line
from PIL import Image

import predict
from experiment.checkpoint import load_net
from experiment.errors import CheckpointError
from photo import ImageError, prepare
from study.photographs import beside, printed


def main(*argv):
    return predict.main([str(arg) for arg in argv])


@pytest.fixture
def seven(tmp_path):
    """Path of a picture of a 7."""
    printed("7", "DejaVuSans", 80).save(tmp_path / "7.png")
    return tmp_path / "7.png"


def test_each_picture_without_an_answer_is_one_line_and_the_others_are_answered(
    seven, mnist_test, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    two = beside(*mnist_test.images[:2, 0].numpy(), np.random.default_rng(0))
    Image.open(seven).save(tmp_path / "7.jpg")
    bad = {
        "blank.png": (Image.new("RGB", (300, 200), "white"), "no digit found"),
        "pixel.png": (Image.new("L", (1, 1)), "no digit found"),
        "noise.png": (Image.effect_noise((300, 300), 60), "no digit found"),
        "transparent.png": (Image.new("RGBA", (50, 50)), "no digit found"),
        "two.png": (Image.fromarray(np.pad(two, 10)), "several digits found"),
        "text": (b"seven\n", "Pillow knows no such format"),
        "empty": (b"", "the file is empty"),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(99), "pip install pillow-heif"),
        "truncated.png": (seven.read_bytes()[:-200], "cannot be read"),
        "truncated.jpg": ((tmp_path / "7.jpg").read_bytes()[:-500], "truncated"),
        "damaged.png": (seven.read_bytes().replace(b"IDAT", b"IDXT"), "cannot be read"),
        "30000.pgm": (b"P5 30000 30000 255\n", "900000000 pixels"),
        "10000.pgm": (b"P5 10000 10000 255\n", "100000000 pixels"),
    }
    for name, (content, _) in bad.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            content.save(tmp_path / name)
    expected = {name: text for name, (_, text) in bad.items()} | {"none.png": "No such file", "": "cannot be read"}
    assert main(*(tmp_path / name for name in expected), seven) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{seven}: 7 (") and captured.out.count("\n") == 1
    for line, (name, text) in zip(captured.err.splitlines(), expected.items(), strict=True):
        assert line.startswith(f"predict.py: error: {tmp_path / name}") and text in line


def test_from_python_an_answer_is_that_of_the_net_and_an_error_names_the_picture(mnist_test):
    image = mnist_test.images[0, 0].numpy()
    row = predict.predict(image[None])  # by default with weights/best.pth
    assert row.shape == (1, 10) and row.sum().item() == pytest.approx(1) and row.argmax() == mnist_test.labels[0]
    np.testing.assert_array_equal(row, predict.probabilities(load_net(predict.DEFAULT), [prepare(image)]))
    assert predict.predict([]).shape == (0, 10)
    with pytest.raises(ImageError, match="image 1: no digit found"):
        predict.predict([image, np.zeros_like(image)])
    values, shapes = [np.full((9, 9), value) for value in (np.nan, -1.0, 1e6)], [np.zeros((2, 3, 4, 5)), np.zeros(0)]
    for wrong in values + shapes:
        with pytest.raises(ImageError, match="image 0 cannot be read"):
            predict.predict([wrong])


def test_json_and_a_picture_of_what_the_net_saw(seven, tmp_path, capsys):
    files = [seven, tmp_path / "blank.png", tmp_path / "none.png"]
    Image.new("L", (80, 80), 255).save(files[1])
    assert main(*files, "--json", "--show", tmp_path / "seen.png") == 1
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert [answer["file"] for answer in answers] == list(map(str, files)) and captured.err.count("\n") == 2
    row = predict.predict(seven)[0]
    (first, second, *_), (digit, runner_up, *_) = (values.tolist() for values in row.sort(descending=True))
    assert digit == 7 and answers[0] == {
        **{"file": str(seven), "digit": digit, "probability": round(first, 4), "unsure": False},
        **{"runner_up": runner_up, "runner_up_probability": round(second, 4)},
    }
    assert "no digit found" in answers[1]["error"] and "No such" in answers[2]["error"]
    sheet = np.asarray(Image.open(tmp_path / "seen.png").convert("L"))
    np.testing.assert_array_equal(sheet[:140, 140:280], prepare(seven).repeat(5, 0).repeat(5, 1))
    assert (sheet[:140, 300:580] == sheet[0, 579]).mean() == 0.5  # a blank sheet beside nothing


def test_what_exists_is_not_overwritten_by_what_the_net_saw(seven, tmp_path, capsys):
    """As `--show *.png` would."""
    before = seven.read_bytes()
    assert main(tmp_path / "b.png", "--show", seven) == 2
    assert_one_line(capsys.readouterr(), "7.png exists already", name="predict.py")
    assert seven.read_bytes() == before


def test_an_answer_is_unsure_below_the_threshold(seven, monkeypatch, capsys):
    """Also with variables that torchrun left behind."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for threshold, unsure in ((0.01, False), (0.99, True)):
        monkeypatch.setattr(predict, "UNSURE", threshold)
        assert main(seven) == 0
        answer = capsys.readouterr().out
        assert answer.startswith(f"{seven}: 7 (") and answer.endswith("), unsure\n" if unsure else "%)\n")


def test_weights_of_a_run_and_weights_that_cannot_be_loaded(seven, whole_run, tmp_path, capsys):
    assert main(seven, "--weights", whole_run / "best.pt", "--json") == 0
    [answer], row = json.loads(capsys.readouterr().out), predict.predict(seven, load_net(whole_run / "best.pt"))[0]
    assert (answer["digit"], answer["probability"]) == (row.argmax(), round(row.max().item(), 4))
    (tmp_path / "bad.pt").write_bytes((whole_run / "best.pt").read_bytes()[:-100])
    for name in ("bad.pt", "none.pth", "7.png"):
        assert main(seven, "--weights", tmp_path / name) == CheckpointError.exit_code == 2
        captured = capsys.readouterr()
        assert_one_line(captured, f"{tmp_path / name} cannot be loaded", name="predict.py")
        assert not captured.out
