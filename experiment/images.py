"""Pictures for predict.py: files and arrays of every kind as greyscale, the ink in them, what the net saw of each."""

import contextlib
import io
import itertools
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from scipy import ndimage

from experiment.errors import ImageError

PIXELS = 400  # side to which a larger picture is reduced
# Chosen on pictures of training images by `python -m tests.photographs`: results/predict.txt.
EVEN = 0.015  # standard deviation of brightness up to which paper is even
FAINT = 0.1  # contrast to the paper up to which nothing is ink
NOISE = 5  # the same in standard deviations of the paper
RINGING = 0.04  # contrast, of the strokes', up to which a lossy format adds ink beside them
CLUTTER = 2.5  # contrast of a digit to the paper, at least, in that of the strongest 1% beside it
SMALLEST = 0.06  # size of a digit, of the picture's side
PART = 0.1  # ink in a part of a digit, of the largest part's
TALL = 0.6  # height of another digit, of the tallest part's


def open_image(image, name=None):
    """`image` (path, PIL image or array) as an upright 8-bit RGBA image, at most PIXELS wide and high."""
    content, is_path = b"", isinstance(image, (str, os.PathLike))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if is_path:
                content = Path(image).read_bytes()
                image = decode(content)
            if isinstance(image, Image.Image):
                image = ImageOps.exif_transpose(image)
            if not isinstance(image, Image.Image) or image.mode[0] in "IF":  # convert would clip more than 8 bits
                image = Image.fromarray(eight_bits(np.squeeze(np.asarray(image))))
            image = image.convert("RGBA")
            image.thumbnail((PIXELS, PIXELS), Image.Resampling.BILINEAR)
            return image
    except Exception as error:  # Pillow has a dozen types for what is wrong
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, UnidentifiedImageError):
            reason = "Pillow knows no such format" if content else "the file is empty"
            if content[4:8] == b"ftyp":
                reason = "for HEIC: pip install pillow-heif"
        raise ImageError(f"{name} cannot be read ({reason}); expected a picture, such as PNG, JPEG or WebP") from error


def decode(content):
    """The PIL image in the bytes `content`, HEIC too if pillow-heif is installed."""
    if content[4:8] == b"ftyp":
        with contextlib.suppress(ImportError):
            from pillow_heif import register_heif_opener

            register_heif_opener()
    return Image.open(io.BytesIO(content))


def eight_bits(values):
    """Numbers up to 1, 255 or 65535, whichever is the first that none exceeds, as uint8 up to 255."""
    white = next((white for white in (1, 255, 65535) if values.max() <= white and values.min() >= 0), None)
    if white is None:
        raise ValueError(f"found values from {values.min()} to {values.max()}, expected 0 to 1, 255 or 65535")
    return np.uint8(values * (255 / white) + 0.5)


def to_grey(image):
    """An RGBA image as floats (H, W) in 0..1, with what is transparent as paper."""
    grey = np.asarray(image.convert("RGB").convert("L")) / 255
    alpha = np.asarray(image.getchannel("A")) / 255
    if not alpha.any():
        return alpha
    paper = np.median(grey[alpha > 0])
    if alpha.mean() < 0.5:  # only the ink is opaque: paper is what differs from it most
        paper = float(paper < 0.5)
    return alpha * grey + (1 - alpha) * paper


def find_ink(grey):
    """By how much each pixel of `grey`, floats (H, W) in 0..1, differs from the paper: 0 is paper, 1 black on white.

    The contrast is relative to the paper, so that ink in a shadow counts as much as ink beside it. Light ink on dark
    paper is inverted.
    """
    paper = find_paper(grey)
    darker = paper - grey
    if (darker * darker * darker).sum() < 0:  # what differs most is lighter
        grey, paper = 1 - grey, 1 - paper
    return 1 - grey / np.maximum(paper, 0.1)


def find_paper(grey):
    """Brightness of the paper under each pixel of `grey`, floats (H, W), from a copy of at most 40 pixels.

    If the copy's edge is even, or changes evenly, so does the paper. Else, as with a shadow, it is a median filter half
    as wide and high as the picture.
    """
    image = Image.fromarray(grey.astype(np.float32))
    image.thumbnail((40, 40), Image.Resampling.BOX)
    copy = np.asarray(image)
    rows, columns = ((np.indices(copy.shape).T + 0.5) / copy.shape).T  # 0..1, of each pixel
    edge = (np.indices(copy.shape).T % (np.maximum(copy.shape, 2) - 1) == 0).any(-1).T
    plane = np.stack([np.ones_like(rows), rows, columns], -1)[edge]
    level, down, right = slope = np.linalg.lstsq(plane, copy[edge], rcond=None)[0]
    if (copy[edge] - plane @ slope).std() <= EVEN:
        rows, columns = ((np.arange(size) + 0.5) / size for size in grey.shape)
        return level + down * rows[:, None] + right * columns
    paper = ndimage.median_filter(copy, [size // 2 | 1 for size in copy.shape], mode="nearest")
    return np.asarray(Image.fromarray(paper).resize(grey.shape[::-1], Image.Resampling.BILINEAR))


def isolate_digit(ink):
    """`ink`, floats (H, W), with 0 wherever no digit is; ValueError if there is none, or several.

    Ink near strong ink counts if 99% of what lies farther away is fainter: that is noise, or lines on the paper. Its
    connected parts make up the digit, but for specks and, if something else is left, what the edge cuts.
    """
    side, floor = max(ink.shape), max(FAINT, NOISE * 1.4826 * np.median(np.abs(ink)))  # 1.4826: from median to std
    strong = ink[ink > floor]
    stroke = (strong**2).sum() / max(strong.sum(), 1e-9)  # contrast of most strokes
    near = ndimage.binary_dilation(ink > max(floor, stroke / 2), np.ones((3, 3)), 2 + side // 100)
    low = max(RINGING * stroke, 0 if near.all() else np.quantile(ink[~near], 0.99))
    ink = np.where(near & (ink > low), ink, 0)

    labels, count = ndimage.label(ink, np.ones((3, 3)))
    slices = ndimage.find_objects(labels)
    start = np.array([[rows.start, columns.start] for rows, columns in slices]).reshape(-1, 2)
    stop = np.array([[rows.stop, columns.stop] for rows, columns in slices]).reshape(-1, 2)
    extent = stop - start  # height and width of every part
    mass = ndimage.sum_labels(ink, labels, np.arange(count) + 1)
    cut = ((start == 0) | (stop == ink.shape)).any(1)
    bar = cut & (8 * extent.min(1) < extent.max(1)) & (extent != ink.shape).any(1)  # a table's rim, a line
    mass = np.where(bar, 0, mass)
    whole = np.where(cut, 0, mass)
    digit, clutter = (whole, CLUTTER) if whole.max(initial=0) > PART * mass.max(initial=0) else (mass, 2 * CLUTTER)
    kept = digit > PART * digit.max(initial=0)
    if extent[kept].max(initial=0) < max(3, SMALLEST * side) or stroke < clutter * low:
        raise ValueError("no digit found; expected one that is clearly darker or lighter than its background")
    ratio = extent[:, 0] / extent[kept, 0].max()
    tall = np.flatnonzero((mass > PART * digit.max()) & (ratio >= TALL) & (ratio <= 1 / TALL))
    if any((stop[a] <= start[b]).any() for a, b in itertools.permutations(tall, 2)):
        raise ValueError("several digits found; crop the picture to one")
    return np.where(np.append(False, kept)[labels], ink, 0)


def contact_sheet(files, digits, captions, side=140, columns=4):
    """PNG bytes: each of `files`, grey if it cannot be read, beside what the net saw, uint8 (28, 28) or None."""
    width, height, content = 2 * side + 20, side + 20, io.BytesIO()
    sheet = Image.new("RGB", (min(len(files), columns) * width, -(-len(files) // columns) * height), "white")
    for i, (file, digit, caption) in enumerate(zip(files, digits, captions)):
        tile = Image.new("RGB", (2 * side, height), "white")
        tile.paste("grey", (0, 0, 2 * side, side))
        with contextlib.suppress(ImageError):
            original = ImageOps.contain(open_image(file), (side, side))
            tile.paste(original, (0, 0), original)
        if digit is not None:
            tile.paste(Image.fromarray(digit).resize((side, side), Image.Resampling.NEAREST), (side, 0))
        ImageDraw.Draw(tile).text((0, side + 4), caption.encode("ascii", "replace").decode(), "black")
        sheet.paste(tile, (i % columns * width, i // columns * height))
    sheet.save(content, "PNG")
    return content.getvalue()
