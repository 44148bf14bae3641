"""Synthetic pictures of digits; by them predict.py's thresholds are chosen and its answers counted.

    python -m study.photographs > results/predict.txt

Thresholds are chosen on pictures of training images, answers counted on those of test images. None is a photograph.
"""

import io
import string
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

import ink
import photo
import predict
from experiment.cli import command
from experiment.datasets import load_mnist
from experiment.weights import load_net
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
    "line": (0.1, 0.4),  # contrast of these lines
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
FONTS = ("DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBol", "cmr10")
THRESHOLDS = ("EVEN", "FAINT", "NOISE", "RINGING", "CLUTTER", "SMALL", "SIMILAR")  # of ink.py
OUTCOMES = ("right", "right?", "wrong", "wrong?", "refused")  # ?: unsure


def photograph(digit, rng, **options):
    """A PIL image, RGB, of `digit` (uint8 (28, W), as in MNIST) on paper; `options` replace those of PHOTOGRAPH."""
    o = SimpleNamespace(**{**PHOTOGRAPH, **options})
    ink = pen_stroke(digit, int(rng.uniform(*o.frame)), rng.uniform(-o.tilt, o.tilt), o.pen)
    sides = [int(max(side, max(ink.shape) * rng.uniform(*o.room))) for side in ink.shape]
    corner = [rng.integers(0, side - size, endpoint=True) for side, size in zip(sides, ink.shape)]
    ink = np.pad(ink * rng.uniform(*o.contrast), [(c, n - c - s) for c, n, s in zip(corner, sides, ink.shape)])

    sheet = np.full(sides, rng.uniform(*o.paper))
    slope, spacing, width = rng.uniform(-0.03, 0.03), rng.uniform(0.1, 0.2) * max(sides), rng.uniform(1, 3)
    contrast, (rows, columns) = rng.uniform(*o.line), np.indices(sides)
    for across in [rows + slope * columns, columns - slope * rows][: o.lines]:
        sheet[across % spacing < width] *= 1 - contrast
    for row, column in rng.integers(0, sides, (o.specks, 2)):
        sheet[row : row + rng.integers(1, 4), column : column + rng.integers(1, 4)] *= rng.uniform(0.1, 0.6)
    sheet = sheet[..., None]
    full = np.full(3, 0.95) if o.chalk else sheet * o.color  # where the ink is strongest
    picture = sheet + (full - sheet) * ink[..., None]
    if o.table:  # above, below, left or right
        width = np.eye(4, dtype=int)[rng.integers(4)].reshape(2, 2) * (max(sides) // 5)
        picture = np.pad(picture, [*width, (0, 0)], constant_values=rng.uniform(0.15, 0.35))
    picture = picture * lighting(picture.shape[:2], rng, o.light, o.shadow)[..., None]
    picture = ndimage.gaussian_filter(picture, (o.blur, o.blur, 0)) + rng.normal(0, o.noise, (*picture.shape[:2], 1))
    picture = Image.fromarray(np.uint8(picture.clip(0, 1) * 255 + 0.5))
    if o.quality is None:
        return picture
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=o.quality)
    return Image.open(content)


def pen_stroke(digit, height, tilt, pen):
    """The box of `digit` (uint8 (28, W)), its height enlarged from 28 to `height`, with sharp edges: floats in 0..1."""
    big = Image.fromarray(digit).resize((height * digit.shape[1] // 28, height), Image.Resampling.BICUBIC)
    ink = np.asarray(big.rotate(tilt, Image.Resampling.BICUBIC, expand=True)) / 255
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


def printed(text, font, size=64):
    """A PIL image of `text`, black on white; `font` is one that matplotlib brings along."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    image = Image.new("L", (2 * size, 2 * size), 255)
    ImageDraw.Draw(image).text((size, size), text, fill=0, font=ImageFont.truetype(str(file), size), anchor="mm")
    return image


def beside(a, b, rng):
    """Two digits (uint8 (28, 28)) as one, uint8 (28, W), a little apart."""
    a, b = (digit[:, digit.any(0)] for digit in (a, b))
    gap = np.zeros((28, rng.integers(3, 12)), np.uint8)
    return np.pad(np.hstack([a, gap, b]), [(0, 0), (4, 4)])


def sample(split, count, seed):
    """{kind: [(picture, digit)]} from a data.Split, `count` of each of KINDS; None is no digit, or several."""
    rng, originals, labels = np.random.default_rng(seed), split.images[:, 0].numpy(), split.labels.tolist()
    groups, blank, pairs = {}, [], []
    for kind, options in KINDS.items():
        index = rng.integers(0, len(labels), count)
        groups[kind] = [(photograph(originals[i], rng, **options), labels[i]) for i in index]
        for i in index[: max(1, count // 4)]:
            blank.append((photograph(np.zeros((28, 28), np.uint8), rng, **options), None))
            pairs.append((photograph(beside(originals[i], originals[i - 1], rng), rng, **options), None))
    return {**groups, "all digits": sum(groups.values(), []), "blank sheets": blank, "two digits": pairs}


def outcome(picture, digit, net):
    """One of the OUTCOMES of showing predict.py a picture of `digit`, or of none or several (None)."""
    try:
        row = predict.predict([picture], net)[0]
    except photo.ImageError:
        return "refused"
    answer = "right" if int(row.argmax()) == digit else "wrong"
    return answer if row.max() >= predict.UNSURE else f"{answer}?"


def print_outcomes(title, pictures, net):
    """Print how many of the `pictures`, pairs of picture and digit, have each of the OUTCOMES."""
    counts = Counter(outcome(picture, digit, net) for picture, digit in pictures)
    print(f"{title:30}{len(pictures):6}", *(f"{counts[name] / len(pictures):9.2%}" for name in OUTCOMES), flush=True)


def vary(module, name, values, groups, net):
    """Print the outcomes with each of the `values` of a threshold in `module`."""
    chosen = getattr(module, name)
    for kind in ("all digits", "blank sheets", "two digits"):
        for value in values:
            setattr(module, name, value)
            print_outcomes(f"{name} {value:.2g}, {kind}", groups[kind], net)
    setattr(module, name, chosen)


@command
def main(argv=None):
    dataset, net, about = load_mnist(), load_net(predict.DEFAULT), describe_machine()
    print(f"# python -m study.photographs\n# {about['machine']}, {about['versions']}, weights/best.pth")
    print("# n: number of pictures; the rest: shares of them; ?: unsure; of three thresholds, the second is chosen\n")
    print(f"{'Training images':30}{'n':>6}", *(f"{name:>9}" for name in OUTCOMES))
    pictures = sample(dataset.train, 24, seed=0)
    for name in THRESHOLDS:
        chosen = getattr(ink, name)
        vary(ink, name, (2 / 3 * chosen, chosen, 4 / 3 * chosen), pictures, net)
    vary(predict, "UNSURE", (0.9, predict.UNSURE, 0.99), sample(dataset.train, 120, seed=3), net)
    groups = sample(dataset.test, 200, seed=1)
    groups["MNIST as it is"] = list(zip(dataset.test.images[:1000, 0].numpy(), dataset.test.labels[:1000].tolist()))
    groups["printed digits"] = [(printed(digit, font), int(digit)) for font in FONTS for digit in string.digits]
    groups["capital letters"] = [(printed(text, font), None) for font in FONTS for text in string.ascii_uppercase]
    print("\nTest images")
    for kind, pictures in groups.items():
        print_outcomes(kind, pictures, net)


if __name__ == "__main__":
    sys.exit(main())
