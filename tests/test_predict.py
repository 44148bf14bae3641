"""predict.py: every picture gets an answer, or one line that says why not."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_line
from PIL import Image

import predict
from experiment.errors import CheckpointError
from experiment.weights import WEIGHTS, load_net
from photo import ImageError, prepare
from study.photographs import printed


def main(*argv):
    return predict.main([str(arg) for arg in argv])


@pytest.fixture
def seven(tmp_path):
    """Path of a picture of a 7."""
    printed("7", "DejaVuSans", 80).save(tmp_path / "7.png")
    return tmp_path / "7.png"


def test_a_picture_without_answer_is_one_line_and_others_are_answered(seven, mnist_test, tmp_path, monkeypatch, capsys):
    bad = {
        "blank.png": (Image.new("RGB", (300, 200), "white"), "no digit found"),
        "pixel.png": (Image.new("L", (1, 1)), "no digit found"),
        "noise.png": (Image.effect_noise((300, 300), 60), "no digit found"),
        "transparent.png": (Image.new("RGBA", (50, 50)), "no digit found"),
        "text": (b"seven\n", "cannot identify image file"),
        "empty": (b"", "cannot identify image file"),
        "text.heic": (b"seven\n", "pip install pillow-heif"),
        "truncated.png": (seven.read_bytes()[:-200], "cannot be read"),
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
    images = mnist_test.images[:3, 0].numpy()
    image, colour, rows = images[0], np.stack([images] * 3, -1), predict.predict(images)
    assert rows.sum(1).tolist() == pytest.approx([1] * 3) and rows.argmax(1).equal(mnist_test.labels[:3])
    np.testing.assert_array_equal(rows, predict.probabilities(load_net(WEIGHTS / "best.pth"), [*map(prepare, images)]))
    for given in (image, image[..., None], colour[0], [image], colour, list(images)):
        np.testing.assert_allclose(predict.predict(given), rows[: 3 if len(given) == 3 else 1], atol=1e-6)
    assert predict.predict([]).shape == (0, 10)
    with pytest.raises(ImageError, match="image 1: no digit found"):
        predict.predict([image, np.zeros_like(image)])
    with pytest.raises(ImageError, match="image 0: several digits found"):
        predict.predict([np.hstack(images)])
    values, shapes = [np.full((9, 9), value) for value in (np.nan, -1.0, 1e6)], [np.zeros((2, 3, 4, 5)), np.zeros(0)]
    for wrong in values + shapes:
        with pytest.raises(ImageError, match="image 0 cannot be read"):
            predict.predict([wrong])


def test_json_and_a_new_picture_of_what_the_net_saw_and_unsure_answers(seven, tmp_path, monkeypatch, capsys):
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
        **{"runner_up": runner_up, "runner_up_probability": round(second, 4), "text": "7"},
        "digits": [{"digit": 7, "probability": round(first, 4), "box": [61, 50, 100, 108]}],
    }
    assert "no digit found" in answers[1]["error"] and "No such" in answers[2]["error"]
    sheet = np.asarray(Image.open(tmp_path / "seen.png").convert("L"))
    np.testing.assert_array_equal(sheet[:140, 140:280], prepare(seven).repeat(5, 0).repeat(5, 1))
    assert (sheet[:140, 300:580] == sheet[0, 579]).mean() == 0.5  # a blank sheet beside nothing
    before = seven.read_bytes()
    assert main(tmp_path / "b.png", "--show", seven) == 2 and seven.read_bytes() == before  # as `--show *.png` would
    assert_one_line(capsys.readouterr(), "7.png exists already", name="predict.py")
    monkeypatch.setenv("WORLD_SIZE", "2")  # left behind by torchrun
    monkeypatch.setenv("RANK", "1")
    for threshold, unsure in ((0.01, False), (1.01, True)):
        monkeypatch.setattr(predict, "UNSURE", threshold)
        assert main(seven) == 0
        answer = capsys.readouterr().out
        assert answer.startswith(f"{seven}: 7 (") and answer.endswith("), unsure\n" if unsure else "%)\n")


def test_rows_of_digits_are_read_and_shown(mnist_test, tmp_path, monkeypatch, capsys):
    index = [0, 3, 5, 13, 16, 11, 2, 1, 17]
    images, labels = mnist_test.images[index, 0].numpy(), mnist_test.labels[index].tolist()
    nine = Image.fromarray(np.vstack([np.hstack(images[i : i + 3]) for i in (0, 3, 6)]))
    nine.resize((504, 504)).save(tmp_path / "9.png")
    texts = ["".join(map(str, labels[i : i + 3])) for i in (0, 3, 6)]
    assert main(tmp_path / "9.png", "--json", "--show", tmp_path / "seen.png") == 0
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["text"] == "\n".join(texts) and answer["digit"] is answer["runner_up"] is None
    assert [digit["digit"] for digit in answer["digits"]] == labels
    for number, digit in enumerate(answer["digits"]):
        row, column = divmod(number, 3)
        left, top, right, bottom = digit["box"]
        assert 168 * column < left < right < 168 * column + 168 and 168 * row < top < bottom < 168 * row + 168
    least = min(answer["digits"], key=lambda digit: digit["probability"])
    assert answer["probability"] == least["probability"]
    for threshold, unsure in ((least["probability"] + 1e-4, True), (0.0, False)):
        monkeypatch.setattr(predict, "UNSURE", threshold)
        assert main(tmp_path / "9.png") == 0
        assert (output := capsys.readouterr().out).endswith("), unsure\n") == unsure
    lines = [f"{tmp_path / '9.png'}: {text}" for text in texts]
    lines[-1] += f" (least sure: {least['digit']}, {least['probability']:.0%})"
    assert output.splitlines() == lines
    red = (np.asarray(Image.open(tmp_path / "seen.png")) == [255, 0, 0]).all(2)
    assert red[:140, :140].sum() > 500 and not red[:, 140:].any()


def test_probabilities_are_of_the_logits_divided_by_the_temperature_of_the_weights(mnist_test, whole_run):
    images = mnist_test.images[:5]
    for name in ("default", "tiny"):
        net, temperature = load_net(name), json.loads((WEIGHTS / f"{name}.json").read_text())["temperature"]
        expected = (net(images) / temperature).softmax(1)
        torch.testing.assert_close(predict.probabilities(net, list(images[:, 0].numpy())), expected)
    assert load_net(whole_run).temperature == load_net("default").temperature  # of its recipe


def test_weights_of_a_run_and_weights_that_cannot_be_loaded(seven, whole_run, tmp_path, capsys):
    best = whole_run / "best.pt"
    for source, file in ((whole_run, best), (best, best), ("tiny", WEIGHTS / "tiny.pth")):
        assert main(seven, "--weights", source, "--json") == 0
        [answer], row = json.loads(capsys.readouterr().out), predict.predict(seven, load_net(file))[0]
        assert (answer["digit"], answer["probability"]) == (row.argmax(), round(row.max().item(), 4))
    (tmp_path / "bad.pt").write_bytes(best.read_bytes()[:-100])
    for name in ("bad.pt", "none.pth", "7.png"):
        assert main(seven, "--weights", tmp_path / name) == CheckpointError.exit_code == 2
        captured = capsys.readouterr()
        assert_one_line(captured, f"{tmp_path / name} cannot be read", name="predict.py")
        assert not captured.out


def test_the_digits_of_a_csv_are_those_of_the_net_or_one_line_says_what_is_wrong(mnist_test, tmp_path, capsys):
    images, file, submission = mnist_test.images[:40], tmp_path / "test.csv", tmp_path / "submission.csv"
    np.savetxt(file, images.reshape(40, -1), "%d", ",", header="pixel0", comments="")
    assert main("--csv", file, "--weights", "tiny") == 0
    digits, text = load_net(WEIGHTS / "tiny.pth")(images).argmax(1).tolist(), file.read_text()
    assert submission.read_text() == "ImageId,Label\n" + "".join(f"{i},{digit}\n" for i, digit in enumerate(digits, 1))
    submission.unlink()
    for bad in (text.replace("\n", "\n7,"), text.replace(",0,", ",256,"), text.replace(",0,", ",x,", 1)):
        file.write_text(bad)
        assert main("--csv", file) == 2 and not submission.exists()
        assert_one_line(capsys.readouterr(), str(file), "expected a header, then rows of 784 pixels", name="predict.py")
    with pytest.raises(SystemExit, match="2"):
        main("--json")
    assert_one_line(capsys.readouterr(), "IMAGE: expected pictures", name="predict.py")
