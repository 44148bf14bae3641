"""From a picture of digits, a photograph, scan or drawing, to 28x28 pixels for each; ink.py finds them."""

import contextlib
import io
import math
import os
import textwrap
import warnings

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from experiment.errors import FileError, reading
from ink import center_digit, drop_lines, find_ink, find_papers, find_rows
from model import SIDE

with contextlib.suppress(ImportError):  # for HEIC
    import pillow_heif

    pillow_heif.register_heif_opener()

PIXELS = 400  # side to which a larger picture is reduced


class ImageError(FileError):
    """A picture cannot be read, or does not show one digit."""

    exit_code = 1


def prepare(image, name="image"):
    """The digit that `image` (path, PIL image or array) shows, in MNIST's form: uint8 (28, 28), white on black.

    ImageError, by its path or else its `name`, if there is none or several.
    """
    name = image if isinstance(image, (str, os.PathLike)) else name
    rows = read_rows(image, name)
    if len(rows) > 1 or len(rows[0]) > 1:
        raise ImageError(f"{name}: several digits found; crop the picture to one")
    return rows[0][0][1]


def read_rows(image, name):
    """The digits in `image` (path, PIL image or array), row by row from left to right: a list of rows of pairs.

    A pair is a box, the pixels (left, top, right, bottom) of the upright picture, and the digit as `prepare` has it.
    """
    image = open_image(image, name)
    rows = find_digits(image, PIXELS)
    if sum(map(len, rows)) != 1 and max(image.size) > PIXELS:  # of several digits, each has few of these pixels
        several = find_digits(image, 4 * PIXELS)
        rows = several if sum(map(len, several)) > 1 else rows
    if not rows:
        raise ImageError(f"{name}: no digit found; expected one that is clearly darker or lighter than its background")
    return rows


def find_digits(image, pixels):
    """The rows of pairs, as of `read_rows`, on the first of `find_papers` that shows any, in `image` of `pixels`."""
    small, rows = image.copy(), []
    small.thumbnail((pixels, pixels), Image.Resampling.BILINEAR)
    grey, scale = to_grey(small), image.width / small.width
    for number, paper in enumerate(find_papers(grey)):
        rows = find_rows(drop_lines(find_ink(grey, paper)), may_be_cut=number == 0)
        if rows:
            break
    return [[(tuple(round(scale * side) for side in box), center_digit(ink)) for box, ink in row] for row in rows]


def prepare_or_keep(path):
    """As `prepare`; a picture of 28x28 pixels is kept as it is, or inverted if its rim is light."""
    image = open_image(path, path)
    if image.size != (SIDE, SIDE):
        return prepare(image, path)
    pixels = np.uint8(to_grey(image) * 255 + 0.5)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if np.median(rim) > 127 else pixels


def open_image(image, name=None):
    """`image` (path, PIL image or array) as an upright 8-bit RGBA image."""
    expected = "expected a picture, such as PNG, JPEG or WebP; for HEIC: pip install pillow-heif"
    with reading(name, expected, ImageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(image) if isinstance(image, (str, os.PathLike)) else image
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
        if not isinstance(image, Image.Image) or image.mode[0] in "IF":  # convert would clip more than 8 bits
            image = Image.fromarray(eight_bits(np.squeeze(np.asarray(image))))
        return image.convert("RGBA")


def eight_bits(values):
    """Numbers up to 1, 255 or 65535, whichever is the first that none exceeds, as uint8 up to 255."""
    for white in (1, 255, 65535):
        if values.min() >= 0 and values.max() <= white:
            return np.uint8(values * (255 / white) + 0.5)
    raise ValueError(f"found values from {values.min()} to {values.max()}, expected 0 to 1, 255 or 65535")


def to_grey(image):
    """An RGBA image as floats (H, W) in 0..1, with what is transparent as paper."""
    grey = np.asarray(image.convert("RGB").convert("L")) / 255
    alpha = np.asarray(image.getchannel("A")) / 255
    if not alpha.any():
        return alpha
    paper = np.median(grey[alpha > 0])
    if alpha.mean() < 0.5 and np.ptp(grey[alpha > 0.9]) < 0.5:  # only ink is opaque: paper is what differs from it most
        paper = float(paper < 0.5)
    return alpha * grey + (1 - alpha) * paper


def contact_sheet(pictures, side=140, columns=4):
    """PNG bytes: each picture with boxes around its digits, grey if it cannot be read, beside what the net saw.

    `pictures`: for each its path, the pairs of box and digit that `read_rows` found, and a caption.
    """
    width, height, content = 2 * side + 20, side + 40, io.BytesIO()
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (min(len(pictures), columns) * width, rows * height), "white")
    for i, (file, digits, caption) in enumerate(pictures):
        tile = Image.new("RGB", (width, height), "white")
        tile.paste("grey", (0, 0, 2 * side, side))
        with contextlib.suppress(ImageError):
            original = open_image(file)
            scale, original = side / max(original.size), ImageOps.contain(original, (side, side))
            tile.paste(original, mask=original)
        draw, many = ImageDraw.Draw(tile), math.ceil(len(digits) ** 0.5)
        for j, (box, digit) in enumerate(digits):
            draw.rectangle([scale * edge for edge in box], outline="red")
            place = side + j % many * (side // many), j // many * (side // many)
            tile.paste(Image.fromarray(digit).resize((side // many,) * 2, Image.Resampling.NEAREST), place)
        caption = textwrap.fill(caption.encode("ascii", "replace").decode(), 46, max_lines=3)
        draw.text((0, side + 4), caption, "black")
        sheet.paste(tile, (i % columns * width, i // columns * height))
    sheet.save(content, "PNG")
    return content.getvalue()
