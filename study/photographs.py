"""Synthetic pictures of digits; by them predict.py's thresholds are chosen and its answers counted.

    python -m study.photographs > results/predict.txt

Thresholds are chosen on pictures of MNIST's training images. The answers are counted on pictures of its test images,
drawn with other random numbers. Neither are real photographs.
"""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

import photo
import predict
from experiment.checkpoint import load_net
from experiment.cli import command
from experiment.datasets import load_mnist
from study.results import describe_machine

PHOTOGRAPH = {  # pairs are the limits of a uniform distribution
    "frame": (80, 200),  # pixels that the 28 of MNIST become
    "room": (1.5, 4),  # the picture's side, of the ink's longer one
    "tilt": 5,  # degrees at most
    "pen": 0,  # MNIST pixels by which strokes grow
    "paper": (0.7, 0.95),  # brightness
    "contrast": (0.6, 0.95),  # of ink to paper
    "color": (0, 0, 0),  # of the ink
    "chalk": False,  # whether the ink is light
    "light": 0.25,  # share by which the light falls off at most
    "shadow": False,
    "lines": 0,  # 1: ruled paper, 2: squared
    "specks": 0,
    "table": False,  # whether one side shows a dark table
    "blur": 0.7,  # standard deviation, pixels
    "noise": 0.015,  # standard deviation of the brightness
    "quality": 70,  # of JPEG; None: not compressed
}
CLEAN = {"tilt": 0, "paper": (1, 1), "contrast": (1, 1), "light": 0, "noise": 0, "blur": 0, "quality": None}
KINDS = {
    "photograph": {},
    "scan": {"light": 0, "noise": 0.005, "quality": 90},
    "screenshot": CLEAN,
    "white on black": CLEAN | {"paper": (0, 0), "chalk": True},
    "shadow": {"shadow": True},
    "pencil": {"contrast": (0.2, 0.35)},
    "chalk": {"paper": (0.15, 0.3), "chalk": True},
    "ruled paper": {"lines": 1},
    "squared paper": {"lines": 2},
    "specks": {"specks": 40},
    "blue pen": {"color": (0.15, 0.25, 0.7)},
    "red pen": {"color": (0.8, 0.1, 0.1)},
    "table edge": {"table": True},
    "small": {"frame": (60, 90), "room": (8, 10)},
    "tight crop": {"frame": (60, 200), "room": (1.05, 1.2)},
    "tilted": {"tilt": 15},
    "thin pen": {"pen": -0.6},
    "thick pen": {"pen": 1.5},
    "blurred": {"blur": 3},
    "noisy": {"noise": 0.06},
    "JPEG 15": {"quality": 15},
    "pencil in shadow": {"contrast": (0.25, 0.4), "shadow": True},
}
STYLES = ("", "-Bold", "-Oblique", "-BoldOblique"), ("", "-Bold", "-Italic", "-BoldItalic")
FONTS = [f"DejaVu{family}{style}" for family in ("Sans", "SansMono") for style in STYLES[0]]
FONTS += [f"DejaVuSerif{style}" for style in STYLES[1]] + [
    f"STIXGeneral{end}" for end in ("", "Bol", "Italic", "BolIta")
]
FONTS += ["cmr10", "cmb10", "cmss10", "cmtt10", "Pillow's"]


CANDIDATES = {
    "EVEN": (0.008, 0.015, 0.03),
    "FAINT": (0.05, 0.1, 0.15),
    "NOISE": (3, 5, 7),
    "RINGING": (0.02, 0.04, 0.06),
    "CLUTTER": (2, 2.5, 3),
    "SMALLEST": (0.03, 0.06, 0.09),
    "PART": (0.05, 0.1, 0.15),
    "TALL": (0.4, 0.6, 0.8),
}


def photograph(digit, rng, **options):
    """A PIL image, RGB, of `digit` (uint8 (28, W), as in MNIST) on paper; `options` replace those of PHOTOGRAPH."""
    o = SimpleNamespace(**{**PHOTOGRAPH, **options})
    ink = pen_stroke(digit, int(rng.uniform(*o.frame)), rng.uniform(-o.tilt, o.tilt), o.pen)
    sides = [int(max(side, max(ink.shape) * rng.uniform(*o.room))) for side in ink.shape]
    corner = [rng.integers(0, side - size, endpoint=True) for side, size in zip(sides, ink.shape)]
    ink = np.pad(ink * rng.uniform(*o.contrast), [(c, n - c - s) for c, n, s in zip(corner, sides, ink.shape)])

    sheet = np.full(sides, rng.uniform(*o.paper))
    for axis in range(o.lines):
        spacing = int(rng.uniform(0.1, 0.2) * max(sides))
        np.moveaxis(sheet, axis, 0)[spacing // 2 :: spacing] *= 1 - rng.uniform(0.1, 0.2)
    for row, column in rng.integers(0, sides, (o.specks, 2)):
        sheet[row : row + rng.integers(1, 4), column : column + rng.integers(1, 4)] *= rng.uniform(0.1, 0.6)
    if o.chalk:
        picture = np.repeat((sheet + (0.95 - sheet) * ink)[..., None], 3, 2)
    else:
        picture = sheet[..., None] * (1 - ink[..., None] * (1 - np.array(o.color)))
    if o.table:  # above, below, left or right
        width = np.eye(4, dtype=int)[rng.integers(4)].reshape(2, 2) * (max(sides) // 5)
        picture = np.pad(picture, [*width, (0, 0)], constant_values=rng.uniform(0.15, 0.35))
    picture = picture * lighting(picture.shape[:2], rng, o.light, o.shadow)[..., None]
    picture = ndimage.gaussian_filter(picture, (o.blur, o.blur, 0)) + rng.normal(0, o.noise, (*picture.shape[:2], 1))
    picture = Image.fromarray(np.uint8(picture.clip(0, 1) * 255 + 0.5))
    return picture if o.quality is None else reopened(picture, "JPEG", quality=o.quality)


def pen_stroke(digit, height, tilt, pen):
    """The box of `digit` (uint8 (28, W)), its height enlarged from 28 to `height`, with sharp edges: floats in 0..1."""
    width = height * digit.shape[1] // 28
    big = Image.fromarray(digit).resize((int(width), int(height)), Image.Resampling.BICUBIC)
    ink = np.asarray(big.rotate(tilt, Image.Resampling.BICUBIC, expand=True)) / 255
    if pen:
        ink = (ndimage.grey_dilation if pen > 0 else ndimage.grey_erosion)(ink, [1 + int(abs(pen) * height / 28)] * 2)
    ink = ((ink - 0.4) * 3 + 0.5).clip(0, 1)
    (box,) = ndimage.find_objects((ink > 0).astype(int)) or [(slice(None), slice(None))]
    return ink[box]


def lighting(shape, rng, light, shadow):
    """How much light each pixel gets, floats in 0..1: less towards one side, and a shadow with a hard or soft edge."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices(shape) / max(shape) - rng.uniform(0.3, 0.7, (2, 1, 1))
    across = rows * np.sin(angle) + columns * np.cos(angle)
    bright = 1 - rng.uniform(0, light) * (across + 1).clip(0, 2) / 2
    if shadow:
        bright *= 1 - rng.uniform(0.3, 0.6) / (1 + np.exp(-across / rng.uniform(0.005, 0.08)))
    return bright


def reopened(picture, form, **options):
    """`picture` saved in the format `form` and opened again."""
    content = io.BytesIO()
    picture.save(content, form, **options)
    return Image.open(content)


def font(name, size):
    if name == "Pillow's":
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def printed(text, name, size=64):
    """`text` in black on white, in the font `name`, `size` pixels high, as a PIL image."""
    image = Image.new("L", (2 * size, 2 * size), 255)
    ImageDraw.Draw(image).text((size, size), text, fill=0, font=font(name, size), anchor="mm")
    return image


def beside(a, b, rng):
    """Two digits (uint8 (28, 28)) as one, uint8 (28, W), a little apart."""
    a, b = (digit[:, digit.any(0)] for digit in (a, b))
    gap = np.zeros((28, rng.integers(3, 12)), np.uint8)
    return np.pad(np.hstack([a, gap, b]), [(0, 0), (4, 4)])


def sample(split, count, seed):
    """{kind: (pictures, labels)}, `count` each, of images in a data.Split; lists of blank sheets and of pairs."""
    rng, digits, blank, pairs = np.random.default_rng(seed), {}, [], []
    originals, labels = split.images[:, 0].numpy(), split.labels.tolist()
    for kind, options in KINDS.items():
        index = rng.integers(0, len(labels), count)
        digits[kind] = [photograph(originals[i], rng, **options) for i in index], [labels[i] for i in index]
        for i in index[: count // 4]:
            blank.append(photograph(np.zeros((28, 28), np.uint8), rng, **options))
            pairs.append(photograph(beside(originals[i], originals[i - 1], rng), rng, **options))
    return digits, blank, pairs


def answers(pictures, net):
    """For each picture (digit, probability), or (None, 0) where predict.py finds no single digit."""
    for picture in pictures:
        try:
            row = predict.predict([picture], net)[0]
            yield int(row.argmax()), float(row.max())
        except photo.ImageError:
            yield None, 0.0


def percent(hits):
    hits = list(hits)
    return f"{100 * sum(hits) / max(len(hits), 1):12.2f}"


def answered(pictures, net):
    return percent(digit is not None for digit, _ in answers(pictures, net))


def choose(split, net, count=24, seed=0):
    """Print what each threshold does, the others as they are."""
    digits, blank, pairs = sample(split, count, seed)
    pictures, labels = (sum((list(group[i]) for group in digits.values()), []) for i in (0, 1))
    print(f"\nThresholds (*: chosen), on {len(labels)} digits, {len(blank)} blank sheets, {len(pairs)} pairs (%)")
    print("                       right     refused   blank ans.   pairs ans.")
    for name, candidates in CANDIDATES.items():
        chosen = getattr(photo, name)
        for value in candidates:
            setattr(photo, name, value)
            found = list(answers(pictures, net))
            columns = [percent(digit == label for (digit, _), label in zip(found, labels))]
            columns += [percent(digit is None for digit, _ in found), answered(blank, net), answered(pairs, net)]
            print(f"{name:10}{value:6}{'*' if value == chosen else ' '}", *columns, flush=True)
        setattr(photo, name, chosen)


def choose_unsure(split, net, count=120, seed=3):
    """Print what the threshold UNSURE does."""
    right, wrong = [], []
    for pictures, labels in sample(split, count, seed)[0].values():
        for (digit, probability), label in zip(answers(pictures, net), labels):
            if digit is not None:
                (right if digit == label else wrong).append(probability)
    print(f"\nUNSURE, on {len(right)} right and {len(wrong)} wrong answers (%): how many are below it")
    for value in (0.4, 0.5, 0.6, 0.7, 0.8):
        mark = "*" if value == predict.UNSURE else " "
        print(f"{value:6}{mark}", *(percent(p < value for p in group) for group in (right, wrong)))


def count_answers(split, net, count=200, seed=1):
    """Print how many answers are right, for every kind of picture."""
    digits, blank, pairs = sample(split, count, seed)
    digits["all of these"] = tuple(sum(parts, []) for parts in zip(*digits.values()))
    as_they_are = [reopened(Image.fromarray(image.numpy()), "PNG") for image in split.images[:1000, 0]]
    digits["MNIST as it is"] = as_they_are, split.labels[:1000].tolist()
    for size in (20, 40, 80, 160):
        texts = [(text, name) for name in FONTS for text in "0123456789"]
        digits[f"{len(FONTS)} fonts, {size} px"] = [printed(*item, size) for item in texts], [int(t) for t, _ in texts]
    print("\nPictures of test images (%)\n                          n        right       unsure      refused")
    for kind, (pictures, labels) in digits.items():
        found = list(answers(pictures, net))
        columns = [percent(digit == label for (digit, _), label in zip(found, labels))]
        columns += [percent(digit is not None and p < predict.UNSURE for digit, p in found)]
        print(f"{kind:20}{len(found):7}", *columns, percent(digit is None for digit, _ in found), flush=True)
    letters = [printed(chr(code), name) for name in FONTS for code in range(ord("A"), ord("Z") + 1)]
    print("\nNo digit (%)\n                          n     answered  sure of all")
    for kind, pictures in {"blank sheets": blank, "two digits": pairs, "capital letters": letters}.items():
        found = list(answers(pictures, net))
        sure = percent(p >= predict.UNSURE for _, p in found)
        print(f"{kind:20}{len(found):7}", percent(digit is not None for digit, _ in found), sure)


@command
def main(argv=None):
    dataset, net, about = load_mnist(), load_net(predict.DEFAULT), describe_machine()
    print(f"# python -m study.photographs\n# {about['machine']}, {about['versions']}, weights/best.pth")
    choose(dataset.train, net)
    choose_unsure(dataset.train, net)
    count_answers(dataset.test, net)


if __name__ == "__main__":
    sys.exit(main())
