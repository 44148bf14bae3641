"""photo.py: pictures of every format, light and paper become what the net knows; others have one error."""

import io

import numpy as np
import pytest
from conftest import optional
from PIL import Image, features
from scipy import ndimage

import predict
from experiment.checkpoint import load_net
from photo import center_digit, find_ink, isolate_digit, prepare
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


def test_ink_does_not_depend_on_light_and_has_no_sign():
    picture = grey(seven()) / 255 * 0.8 + 0.1
    ink = isolate_digit(find_ink(picture))
    falling = np.linspace(1, 0.4, picture.shape[1])
    assert np.abs(isolate_digit(find_ink(picture * falling)) - ink).max() < 0.05
    np.testing.assert_allclose(isolate_digit(find_ink(1 - picture)), ink, atol=1e-5)


def test_specks_lines_a_rim_and_what_the_edge_cuts_are_no_part_of_the_digit():
    digit = np.zeros((100, 100))
    digit[30:70, 40:50] = digit[30:38, 40:65] = digit[34:38, 68:82] = 1  # in two parts
    others, lines = np.zeros_like(digit), np.zeros_like(digit)
    lines[::10] = 1
    others[:, :4] = others[80:82, 60:62] = others[40:60, 90:] = 0.9
    np.testing.assert_array_equal(isolate_digit(digit + others), digit)
    cut = np.s_[30:65, :67]
    np.testing.assert_array_equal(isolate_digit((digit + others)[cut]), digit[cut])  # a cut digit, as there is no other
    np.testing.assert_array_equal(isolate_digit(np.maximum(digit, 0.2 * lines)), digit)
    with pytest.raises(ValueError, match="no digit found"):
        isolate_digit(np.maximum(digit, 0.35 * lines))
    with pytest.raises(ValueError, match="several digits"):
        isolate_digit(digit + np.roll(digit, -38, 1))


@pytest.mark.parametrize("shape", [(31, 23), (9, 40), (12, 11), (1, 60)])
def test_a_digit_is_scaled_to_20_pixels_and_its_mass_is_in_the_middle(shape):
    box = np.random.default_rng(SEED).uniform(0.1, 1, shape) ** 3
    box[: shape[0] // 2] /= 4  # so that its centre is not that of its mass
    image = center_digit(np.pad(box, [(3, 7), (15, 2)]))
    height, width = (max(1, int(size * 20 / max(shape) + 0.5)) for size in shape)
    expected = np.asarray(Image.fromarray(box.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (int(14.5 - centre) for centre in ndimage.center_of_mass(expected))
    found = image[top : top + height, left : left + width].astype(float)
    assert np.abs(found - 255 * expected / expected.max()).max() <= 0.5 + 1e-3
    assert image.sum() == found.sum() and image.max() == 255
