"""predict.py: pictures of every format, light and paper get the right answer, all others one line."""

import io
import json
import struct
import sys
import zlib

import numpy as np
import pytest
from conftest import assert_one_line, optional
from experiment.images import find_ink, isolate_digit
from photographs import FONTS, KINDS, answers, beside, photograph, printed
from PIL import Image, features

import predict
from experiment.checkpoint import load_net
from experiment.datasets import load_mnist
from experiment.errors import CheckpointError, ImageError

SEED = 2  # photographs.py chooses thresholds with 0 and counts answers with 1


@pytest.fixture(scope="module")
def net():
    return load_net(predict.DEFAULT)


@pytest.fixture(scope="module")
def digits():
    """1,000 test images, uint8 (1000, 28, 28), and their labels."""
    images, labels = load_mnist().test
    return images[:1000, 0].numpy(), labels[:1000].numpy()


def main(*argv):
    return predict.main([str(arg) for arg in argv])


def accuracy(pictures, labels, net):
    return np.mean([digit == label for (digit, _), label in zip(answers(pictures, net), labels)])


# What it is for


def test_mnist_given_back_as_png_files_keeps_its_accuracy_and_its_pixels(digits, net, tmp_path):
    images, labels = digits
    files = [tmp_path / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images):
        Image.fromarray(image).save(file)
    assert accuracy(files, labels, net) >= 0.994
    unchanged = [np.abs(predict.prepare(image) - image.astype(int)).max() <= 12 for image in images]
    assert np.mean(unchanged) > 0.95  # in others there is a speck


def test_printed_digits_in_twenty_fonts(net):
    if not features.check("freetype2"):
        pytest.skip("this Pillow was built without FreeType")
    for size in (24, 100):
        pictures = [printed(digit, font, size) for font in FONTS for digit in "0123456789"]
        assert accuracy(pictures, np.tile(np.arange(10), len(FONTS)), net) >= 0.98


def test_photographs_of_paper(digits, net):
    images, labels = digits
    rng, right = np.random.default_rng(SEED), []
    for i, kind in enumerate(list(KINDS) * 8):
        right.append(accuracy([photograph(images[i], rng, **KINDS[kind])], labels[i : i + 1], net))
    assert np.mean(right) >= 0.98


@pytest.mark.parametrize("what", ["nothing", "two digits"])
def test_photographs_of_no_digit_and_of_two(what, digits, net):
    rng, images = np.random.default_rng(SEED), digits[0]
    shown = [np.zeros_like(images[0]) if what == "nothing" else beside(*images[i : i + 2], rng) for i in range(88)]
    pictures = [photograph(image, rng, **KINDS[kind]) for image, kind in zip(shown, list(KINDS) * 4)]
    assert sum(digit is not None for digit, _ in answers(pictures, net)) <= 1


# The same digit in many forms


def seven():
    """A 7 in black on white, in colour: PIL image (200, 160)."""
    image = Image.new("RGB", (160, 200), "white")
    image.paste(printed("7", "DejaVuSans", 80).convert("RGB"), (0, 20))
    return image


def dim(image):
    return Image.eval(image, lambda value: value // 2 + 40)


def sixteen_bits(image):
    return Image.fromarray(np.asarray(dim(image).convert("L")).astype(np.uint16) * 257)


def drawn_on_nothing(image, ink):
    result = Image.new("RGBA", image.size, (ink, ink, ink, 255))
    result.putalpha(Image.fromarray(255 - np.asarray(image.convert("L"))))
    return result


def turned(image):
    """As a camera held upright writes it: on its side, with a note to turn it."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(content, "JPEG", exif=exif, quality=95)
    return Image.open(content)


def as_file(form, **options):
    def save(image):
        content = io.BytesIO()
        image.save(content, form, **options)
        return Image.open(content)

    return save


FORMS = {
    "grey": lambda image: image.convert("L"),
    "inverted": lambda image: Image.eval(image, lambda value: 255 - value),
    "black and white": lambda image: image.convert("1", dither=Image.Dither.NONE),
    "palette": lambda image: image.quantize(16),
    "16 bits": sixteen_bits,
    "16-bit PNG": lambda image: as_file("PNG")(sixteen_bits(image)),
    "32-bit integers": lambda image: Image.fromarray(np.asarray(sixteen_bits(image)).astype(np.int32)),
    "float image": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.float32)),
    "float array": lambda image: np.asarray(image.convert("L")) / 255,
    "bool array": lambda image: np.asarray(image.convert("L")) > 127,
    "array of colours": np.asarray,
    "array with a channel first": lambda image: np.asarray(image.convert("L"))[None],
    "alpha": lambda image: image.convert("RGBA"),
    "black ink on transparent": lambda image: drawn_on_nothing(image, 0),
    "white ink on transparent": lambda image: drawn_on_nothing(image, 255),
    "transparent palette": lambda image: as_file("PNG")(drawn_on_nothing(image, 255).quantize(16)),
    "CMYK": lambda image: image.convert("CMYK"),
    "JPEG": as_file("JPEG", quality=90),
    "WebP": as_file("WEBP", quality=90),
    "GIF": as_file("GIF"),
    "BMP": as_file("BMP"),
    "TIFF": as_file("TIFF"),
    "turned by EXIF": turned,
    "animation": lambda image: as_file("GIF", save_all=True, append_images=[Image.new("RGB", image.size)])(image),
    "large": lambda image: image.resize((1600, 2000), Image.Resampling.BICUBIC),
    "dim": dim,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_net_sees_the_same_in_every_form_of_a_picture(form, net):
    plain, other = predict.prepare(seven()).astype(int), predict.prepare(FORMS[form](seven())).astype(int)
    assert np.abs(other - plain).mean() < 3 and predict.predict([FORMS[form](seven())], net).argmax() == 7


def test_heic(tmp_path):
    optional("pillow_heif").from_pillow(seven()).save(tmp_path / "seven.heic", quality=90)
    assert np.abs(predict.prepare(tmp_path / "seven.heic") - predict.prepare(seven()).astype(int)).mean() < 4


# The half that a browser repeats


def slowly_resampled(box, height, width):
    """As `resample` says, pixel by pixel."""
    result = np.zeros((height, width))
    for new_row, new_column in np.ndindex(height, width):
        total = 0
        for row, column in np.ndindex(*box.shape):
            weight = 1
            for new, old, size, old_size in (
                (new_row, row, height, box.shape[0]),
                (new_column, column, width, box.shape[1]),
            ):
                scale = old_size / size
                weight *= max(0, 1 - abs((new + 0.5) * scale - (old + 0.5)) / max(1, scale))
            result[new_row, new_column] += weight * box[row, column]
            total += weight
        result[new_row, new_column] /= total
    return result


@pytest.mark.parametrize("shape", [(31, 23), (9, 40), (12, 11), (20, 20), (1, 1)])
def test_a_digit_is_scaled_to_20_pixels_and_its_mass_is_in_the_middle(shape):
    rng = np.random.default_rng(SEED)
    box = rng.uniform(0.1, 1, shape) ** 3
    ink = np.pad(box, [(3, 7), (15, 2)])
    image, side = predict.center_digit(ink), max(shape)
    (rows, columns) = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    height, width = (max(1, int(size * 20 / side + 0.5)) for size in shape)
    found = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert found.shape == (height, width) and image.max() == 255
    expected = slowly_resampled(box, height, width)
    assert np.abs(found - 255 * expected / expected.max()).max() <= 0.5 + 1e-6
    for axis in (0, 1):
        assert abs(np.arange(28) @ image.sum(1 - axis) / image.sum() - 14) <= 0.51


def test_ink_does_not_depend_on_light_and_has_no_sign():
    grey = np.asarray(seven().convert("L")) / 255
    ink = isolate_digit(find_ink(grey * 0.8 + 0.1))
    falling = np.linspace(1, 0.4, grey.shape[1])
    assert np.abs(isolate_digit(find_ink((grey * 0.8 + 0.1) * falling)) - ink).max() < 0.05
    np.testing.assert_allclose(isolate_digit(find_ink(0.9 - grey * 0.8)), ink, atol=1e-5)


# Pictures without an answer


def png(width, height):
    """A PNG that claims this size and holds nothing."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b""))
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image, form="PNG"):
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


def two_digits():
    images = load_mnist().test.images[:2, 0].numpy()
    return Image.fromarray(np.pad(beside(*images, np.random.default_rng(SEED)), 10))


BAD = {
    "text": (lambda: b"seven\n", "Pillow knows no such format"),
    "empty": (lambda: b"", "the file is empty"),
    "truncated PNG": (lambda: saved(seven())[:-200], "cannot be read"),
    "truncated JPEG": (lambda: saved(seven(), "JPEG")[:-500], "truncated"),
    "damaged PNG": (lambda: saved(seven()).replace(b"IDAT", b"IDXT"), "cannot be read"),
    "30,000 by 30,000": (lambda: png(30_000, 30_000), "900000000 pixels"),
    "10,000 by 10,000": (lambda: png(10_000, 10_000), "100000000 pixels"),
    "blank": (lambda: saved(Image.new("RGB", (300, 200), "white")), "no digit found"),
    "one pixel": (lambda: saved(Image.new("L", (1, 1))), "no digit found"),
    "noise": (lambda: saved(Image.effect_noise((300, 300), 60)), "no digit found"),
    "transparent": (lambda: saved(Image.new("RGBA", (50, 50))), "no digit found"),
    "two digits": (lambda: saved(two_digits()), "several digits found"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_picture_without_an_answer_is_one_line_and_the_others_are_answered(kind, tmp_path, capsys):
    make, expected = BAD[kind]
    seven().save(tmp_path / "7.png")
    (tmp_path / "bad.png").write_bytes(make())
    assert main(tmp_path / "bad.png", tmp_path / "7.png") == 1
    captured = capsys.readouterr()
    assert_one_line(captured, str(tmp_path / "bad.png"), expected, name="predict.py")
    assert captured.out.startswith(f"{tmp_path / '7.png'}: 7 (") and captured.out.count("\n") == 1


def test_missing_files_folders_and_heic_without_its_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for name, expected in (
        ("none.png", "No such file"),
        ("", "cannot be read"),
        ("photo.heic", "pip install pillow-heif"),
    ):
        assert main(tmp_path / name) == 1
        assert_one_line(capsys.readouterr(), str(tmp_path / name), expected, name="predict.py")


def test_from_python_an_error_names_the_picture(net):
    blank = Image.new("L", (50, 50))
    with pytest.raises(ImageError, match="image 1: no digit found"):
        predict.predict([seven(), blank], net)
    for wrong in (
        np.full((9, 9), np.nan),
        np.full((9, 9), -1.0),
        np.full((9, 9), 1e6),
        np.zeros((2, 3, 4, 5)),
        np.zeros(0),
    ):
        with pytest.raises(ImageError, match="image 0 cannot be read"):
            predict.predict([wrong], net)
    assert predict.predict([], net).shape == (0, 10)


# The command


def test_probabilities_are_those_of_the_net(digits, net):
    image = digits[0][0]
    row = predict.predict(image[None])  # by default with weights/best.pth
    assert row.shape == (1, 10) and row.sum().item() == pytest.approx(1)
    np.testing.assert_allclose(row, predict.probabilities(net, [predict.prepare(image)]))


def test_json_and_a_picture_of_what_the_net_saw(tmp_path, capsys):
    files = [tmp_path / name for name in ("7.png", "blank.png", "none.png")]
    seven().save(files[0])
    Image.new("L", (80, 80), 255).save(files[1])
    assert main(*files, "--json", "--show", tmp_path / "seen.png") == 1
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert [answer["file"] for answer in answers] == list(map(str, files)) and captured.err.count("\n") == 2
    assert answers[0]["digit"] == 7 and answers[0]["probability"] > 0.7 > answers[0]["runner_up_probability"]
    assert not answers[0]["unsure"] and "no digit found" in answers[1]["error"] and "No such" in answers[2]["error"]
    sheet = np.asarray(Image.open(tmp_path / "seen.png").convert("L"))
    seen = predict.prepare(seven()).repeat(5, 0).repeat(5, 1)
    np.testing.assert_array_equal(sheet[:140, 140:280], seen)
    assert (sheet[:140, 300:580] == sheet[0, 579]).mean() == 0.5  # a blank sheet beside nothing


def test_what_exists_is_not_overwritten_by_what_the_net_saw(tmp_path, capsys):
    """As `--show *.png` would."""
    for name in ("a.png", "b.png"):
        seven().save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    assert main(tmp_path / "b.png", "--show", tmp_path / "a.png") == 2
    assert_one_line(capsys.readouterr(), "a.png exists already", name="predict.py")
    assert (tmp_path / "a.png").read_bytes() == before


def test_an_answer_is_unsure_below_the_threshold(tmp_path, monkeypatch, capsys):
    seven().save(tmp_path / "7.png")
    for threshold, unsure in ((0.01, False), (0.99, True)):
        monkeypatch.setattr(predict, "UNSURE", threshold)
        assert main(tmp_path / "7.png") == 0
        assert capsys.readouterr().out.endswith("), unsure\n") == unsure


def test_weights_of_a_run_and_weights_that_cannot_be_loaded(whole_run, tmp_path, capsys):
    seven().save(tmp_path / "7.png")
    assert main(tmp_path / "7.png", "--weights", whole_run / "best.pt") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / '7.png'}: ")
    (tmp_path / "bad.pt").write_bytes((whole_run / "best.pt").read_bytes()[:-100])
    for name in ("bad.pt", "none.pth", "7.png"):
        assert main(tmp_path / "7.png", "--weights", tmp_path / name) == CheckpointError.exit_code == 2
        captured = capsys.readouterr()
        assert_one_line(captured, f"{tmp_path / name} cannot be loaded", name="predict.py")
        assert not captured.out
    with pytest.raises(SystemExit):
        main()
