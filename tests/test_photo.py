"""photo.py: pictures of every format, light and paper become what the net knows; others have one error."""

import io

import numpy as np
import pytest
from conftest import optional
from PIL import Image, features
from scipy import ndimage

import predict
from experiment.weights import load_net
from ink import center_digit, drop_lines, find_ink, find_papers, find_rows
from photo import prepare, read_rows
from study.photographs import FONTS, KINDS, beside, outcome, photograph, printed

SEED = 2  # study/photographs.py chooses thresholds with 0 and 3, and counts answers with 1


@pytest.fixture(scope="module")
def net():
    return load_net(predict.DEFAULT)


def test_mnist_given_back_as_png_files_keeps_its_pixels_and_its_answers(mnist_test, net, tmp_path):
    images, labels, prepared = mnist_test.images[:200, 0].numpy(), mnist_test.labels[:200], []
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        prepared.append(prepare(tmp_path / f"{i}.png"))
    assert np.mean(predict.probabilities(net, prepared).argmax(1).eq(labels).tolist()) >= 0.99
    changes = [np.abs(a - b.astype(int)).max() for a, b in zip(prepared, images)]
    assert np.mean([change <= 12 for change in changes]) > 0.95  # in others there is a speck


def test_printed_digits_in_several_fonts_small_and_large(net):
    if not features.check("freetype2"):
        pytest.skip("this Pillow was built without FreeType")
    for size in (24, 100):
        found = [outcome(printed(str(digit), font, size), digit, net) for font in FONTS for digit in range(10)]
        assert np.mean([what.startswith("right") for what in found]) >= 0.98


def test_photographs_of_one_digit_of_none_and_of_two(mnist_test, net):
    images, labels, rng = mnist_test.images[:, 0].numpy(), mnist_test.labels, np.random.default_rng(SEED)
    blank, digits, others = np.zeros_like(images[0]), [], []
    for i, options in enumerate(KINDS.values()):
        one, another, nothing, two = (
            photograph(digit, rng, **options)
            for digit in (images[i], images[50 + i], blank, beside(*images[100 + i : 102 + i], rng))
        )
        digits += [outcome(one, labels[i], net), outcome(another, labels[50 + i], net)]
        others += [outcome(nothing, None, net), outcome(two, None, net)]
    assert len(digits) == 44 and sum(what.startswith("right") for what in digits) >= 42
    assert len(others) == 44 and others.count("refused") >= 43


def seven():
    """A 7 in black on white, in colour: PIL image (200, 160)."""
    image = Image.new("RGB", (160, 200), "white")
    image.paste(printed("7", "DejaVuSans", 80).convert("RGB"), (0, 20))
    return image


def grey(image):
    return np.asarray(image.convert("L"))


def dim(image):
    return Image.eval(image, lambda value: value // 2 + 40)


def drawn_on_nothing(image, ink):
    result = Image.new("RGBA", image.size, (ink, ink, ink, 255))
    result.putalpha(Image.fromarray(255 - grey(image)))
    return result


def reopened(image, form, **options):
    """`image` saved in the format `form` and opened again."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return Image.open(content)


def turned(image):
    """As a camera held upright writes it: on its side, with a note to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return reopened(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


FORMS = {
    "inverted": lambda image: Image.eval(image, lambda value: 255 - value),
    "dim": dim,
    "large": lambda image: image.resize((1600, 2000), Image.Resampling.BICUBIC),
    "16-bit PNG": lambda image: reopened(Image.fromarray(grey(dim(image)).astype(np.uint16) * 257), "PNG"),
    "32-bit integers": lambda image: Image.fromarray(grey(dim(image)).astype(np.int32) * 257),
    "float image": lambda image: Image.fromarray(grey(image).astype(np.float32)),
    "float array": lambda image: grey(image) / 255,
    "bool array": lambda image: grey(image) > 127,
    "array with a channel first": lambda image: grey(image)[None],
    "black ink on transparent": lambda image: drawn_on_nothing(image, 0),
    "white ink on transparent": lambda image: drawn_on_nothing(image, 255),
    "transparent palette": lambda image: reopened(drawn_on_nothing(image, 255).quantize(16), "PNG"),
    "JPEG": lambda image: reopened(image, "JPEG", quality=90),
    "turned by EXIF": turned,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_net_sees_the_same_in_every_form_of_a_picture(form):
    assert np.abs(prepare(FORMS[form](seven())) - prepare(seven()).astype(int)).mean() < 3


def test_heic(tmp_path):
    optional("pillow_heif").from_pillow(seven()).save(tmp_path / "seven.heic", quality=90)
    assert np.abs(prepare(tmp_path / "seven.heic") - prepare(seven()).astype(int)).mean() < 4


def isolate(ink):
    """`ink` where the one digit is that find_rows finds in it."""
    [[((left, top, right, bottom), own)]] = find_rows(ink)
    return np.pad(own, [(top, len(ink) - bottom), (left, ink.shape[1] - right)])


def test_ink_does_not_depend_on_light_and_has_no_sign():
    picture = grey(seven()) / 255 * 0.8 + 0.1
    dimmed = picture * np.linspace(1, 0.4, picture.shape[1])
    ink, other, negative = (isolate(find_ink(grey, next(find_papers(grey)))) for grey in (picture, dimmed, 1 - picture))
    assert np.abs(other - ink).max() < 0.05
    np.testing.assert_allclose(negative, ink, atol=1e-5)


def test_specks_lines_a_rim_and_what_the_edge_cuts_are_no_part_of_the_digit():
    digit = np.zeros((100, 100))
    digit[30:70, 40:50] = digit[30:38, 40:65] = digit[34:38, 68:82] = 1  # in two parts
    others, lines = np.zeros_like(digit), np.zeros_like(digit)
    lines[::10] = 1
    others[:, :4] = others[80:82, 60:62] = others[40:60, 90:] = 0.9
    np.testing.assert_array_equal(isolate(digit + others), digit)
    cut = np.s_[30:65, :67]
    np.testing.assert_array_equal(isolate((digit + others)[cut]), digit[cut])  # a cut digit, as there is no other
    np.testing.assert_array_equal(isolate(np.maximum(digit, 0.2 * lines)), digit)
    digit[:, 66:] = 0
    assert isolate(np.maximum(digit, 0.5 * lines)).any(0).all()  # with the lines, unless they are taken away
    digit, lines = (np.kron(picture, np.ones((3, 3))) for picture in (digit, lines))
    crossed = isolate(drop_lines(np.maximum(digit, 0.35 * np.maximum(lines, lines.T))))
    assert ((crossed > 0) != (digit > 0)).mean() < 0.05 * digit.mean()
    assert find_rows(drop_lines(0.6 * np.maximum(lines, lines.T))) == []  # a blank sheet


def test_rows_of_digits_are_read_from_left_to_right_and_parts_above_each_other_are_one_digit():
    ink = np.zeros((200, 300))
    digits = {(20, 30): 1, (26, 100): 1, (15, 180): 1, (110, 60): 1, (105, 220): 1}  # rows are not quite level
    for top, left in digits:
        ink[top : top + 50, left : left + 20] = 1
    ink[20:25, 100:140] = 1  # the bar of a five, apart from its body
    ink[26:32, 100:120] = 0
    ink[180:190, 20:30] = ink[150:154, 150:152] = 1  # too low for a digit
    boxes = [[box for box, _ in row] for row in find_rows(ink)]
    assert boxes == [
        [(30, 20, 50, 70), (100, 20, 140, 76), (180, 15, 200, 65)],
        [(60, 110, 80, 160), (220, 105, 240, 155)],
    ]
    framed = np.zeros((260, 360))
    framed[30:230, 30:330] = ink
    framed[10:250, 10:13] = framed[10:250, 347:350] = framed[10:13, 10:350] = framed[247:250, 10:350] = 1
    assert [len(row) for row in find_rows(framed)] == [3, 2]  # a table around digits is none


def test_a_picture_is_read_again_with_another_paper_and_a_card_on_nothing_is_paper(mnist_test):
    five = ndimage.grey_dilation(mnist_test.images[15, 0].numpy(), (3, 3))
    [box] = ndimage.find_objects((five > 0).astype(int))
    fat = 1 - np.asarray(Image.fromarray(np.pad(five[box], 2)).resize((300, 300))) / 255 * 0.85
    fat[:40, :40] *= 0.6  # most of the frame is ink, and its edge uneven
    first, second = (find_rows(drop_lines(find_ink(fat, paper))) for paper in find_papers(fat))
    assert first == [] and len(second) == 1
    card = Image.new("RGBA", (400, 400))
    card.paste(Image.fromarray(255 - mnist_test.images[8, 0].numpy()).resize((150, 150)).convert("RGBA"), (20, 200))
    [[(box, digit)]], [[(large, _)]] = read_rows(card, "card"), read_rows(card.resize((1200, 1200)), "large")
    assert 20 < box[0] < box[2] < 170 and 200 < box[1] < box[3] < 350
    assert np.abs(np.subtract(large, 3 * np.array(box))).max() <= 6
    for seen in (prepare(fat), digit):
        assert predict.predict(seen)[0].argmax() == 5


@pytest.mark.parametrize("shape", [(31, 23), (9, 40), (12, 11), (1, 60)])
def test_a_digit_is_scaled_to_20_pixels_and_its_mass_is_in_the_middle(shape):
    box = np.random.default_rng(SEED).uniform(0.1, 1, shape) ** 3
    box[: shape[0] // 2] /= 4  # so that its centre is not that of its mass
    image = center_digit(np.pad(box, [(3, 7), (15, 2)]))
    height, width = (max(1, int(size * 20 / max(shape) + 0.5)) for size in shape)
    expected = np.asarray(Image.fromarray(box.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (int(14.5 - centre) for centre in ndimage.center_of_mass(expected))
    found = image[top : top + height, left : left + width].astype(float)
    strongest = np.quantile(expected[expected > 0.2 * expected.max()], 0.9)
    assert np.abs(found - (255 * expected / strongest).clip(0, 255)).max() <= 0.5 + 1e-3
    assert image.sum() == found.sum() and image.max() == 255
