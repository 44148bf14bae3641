"""From a picture of one digit, a photograph, scan or drawing, to 28x28 pixels as MNIST's makers prepared theirs."""

import contextlib
import io
import itertools
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from scipy import ndimage

from experiment.errors import FileError, reason
from model import SIDE

PIXELS = 400  # side to which a larger picture is reduced
# Chosen on pictures of training images by `python -m study.photographs`: results/predict.txt.
EVEN = 0.015  # standard deviation of brightness up to which paper is even
FAINT = 0.1  # contrast to the paper up to which nothing is ink
NOISE = 5  # the same in standard deviations of the paper
RINGING = 0.04  # contrast, of the strokes', up to which a lossy format adds ink beside them
CLUTTER = 2.5  # contrast of a digit to the paper, at least, in that of the strongest 1% beside it
SMALLEST = 0.06  # size of a digit, of the picture's side
PART = 0.1  # ink in a part of a digit, of the largest part's
TALL = 0.6  # height of another digit, of the tallest part's


class ImageError(FileError):
    """A picture cannot be read, or does not show one digit."""

    exit_code = 1


def prepare(image, index=0):
    """The digit that `image` (path, PIL image or array) shows, in MNIST's form: uint8 (28, 28), white on black."""
    name = image if isinstance(image, (str, os.PathLike)) else f"image {index}"
    try:
        return center_digit(isolate_digit(find_ink(to_grey(open_image(image, name)))))
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from error


def prepare_or_keep(path):
    """As `prepare`; a picture of 28x28 pixels is kept as it is, or inverted if its rim is light."""
    image = open_image(path, path)
    if image.size != (SIDE, SIDE):
        return prepare(path)
    pixels = np.uint8(to_grey(image) * 255 + 0.5)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if np.median(rim) > 127 else pixels


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
        why = reason(error)
        if isinstance(error, UnidentifiedImageError):
            why = "Pillow knows no such format" if content else "the file is empty"
            if content[4:8] == b"ftyp":
                why = "for HEIC: pip install pillow-heif"
        raise ImageError(f"{name} cannot be read ({why}); expected a picture, such as PNG, JPEG or WebP") from error


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
    rows, columns = middles(copy.shape)
    edge = np.zeros(copy.shape, bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    plane = np.stack(np.broadcast_arrays(1.0, rows, columns), -1)[edge]
    slope = np.linalg.lstsq(plane, copy[edge], rcond=None)[0]
    if (copy[edge] - plane @ slope).std() <= EVEN:
        level, down, right = slope
        rows, columns = middles(grey.shape)
        return level + down * rows + right * columns
    paper = ndimage.median_filter(copy, [size // 2 | 1 for size in copy.shape], mode="nearest")
    return np.asarray(Image.fromarray(paper).resize(grey.shape[::-1], Image.Resampling.BILINEAR))


def middles(shape):
    """The middles of rows (H, 1) and of columns (W,), as fractions of the height and width in `shape`."""
    height, width = shape
    return ((np.arange(height) + 0.5) / height)[:, None], (np.arange(width) + 0.5) / width


def isolate_digit(ink):
    """`ink`, floats (H, W), with 0 wherever no digit is; ValueError if there is none, or several.

    The digit is every connected part of the ink, except specks, and except parts cut by the picture's edge if any other
    part remains.
    """
    ink, stroke, low = drop_faint(ink)
    labels, count = ndimage.label(ink, np.ones((3, 3)))
    slices = ndimage.find_objects(labels)
    start = np.array([[rows.start, columns.start] for rows, columns in slices]).reshape(-1, 2)
    stop = np.array([[rows.stop, columns.stop] for rows, columns in slices]).reshape(-1, 2)
    extent = stop - start  # height and width of every part
    mass = ndimage.sum_labels(ink, labels, np.arange(count) + 1)
    cut = ((start == 0) | (stop == ink.shape)).any(1)
    bar = cut & (8 * extent.min(1) < extent.max(1)) & (extent != ink.shape).any(1)  # a table's rim, a line
    mass[bar] = 0
    digit, clutter = np.where(cut, 0, mass), CLUTTER
    if digit.max(initial=0) <= PART * mass.max(initial=0):  # nothing but what the edge cuts
        digit, clutter = mass, 2 * CLUTTER
    kept = digit > PART * digit.max(initial=0)
    if extent[kept].max(initial=0) < max(3, SMALLEST * max(ink.shape)) or stroke < clutter * low:
        raise ValueError("no digit found; expected one that is clearly darker or lighter than its background")
    ratio = extent[:, 0] / extent[kept, 0].max()
    tall = np.flatnonzero((mass > PART * digit.max()) & (ratio >= TALL) & (ratio <= 1 / TALL))
    if any((stop[a] <= start[b]).any() for a, b in itertools.permutations(tall, 2)):
        raise ValueError("several digits found; crop the picture to one")
    return np.where(np.append(False, kept)[labels], ink, 0)


def drop_faint(ink):
    """(`ink` with 0 where it is faint or far from strong ink, the contrast of its strokes, that of what is dropped).

    Faint is what 99% of the ink far from strong ink does not exceed: noise, or lines on the paper.
    """
    floor = max(FAINT, NOISE * 1.4826 * np.median(np.abs(ink)))  # 1.4826: from median to standard deviation
    strong = ink[ink > floor]
    stroke = (strong**2).sum() / max(strong.sum(), 1e-9)  # contrast of most strokes
    near = ndimage.binary_dilation(ink > max(floor, stroke / 2), np.ones((3, 3)), 2 + max(ink.shape) // 100)
    low = max(RINGING * stroke, 0 if near.all() else np.quantile(ink[~near], 0.99))
    return np.where(near & (ink > low), ink, 0), stroke, low


def center_digit(ink):
    """The digit as MNIST's makers prepared theirs: its box scaled to 20 pixels, its centre of mass in the middle.

    `ink`: floats (H, W) in 0..1, at least one above 0; 0 is paper. Returns uint8 (28, 28), 255 where ink is strongest.
    The box of all ink above 0 is scaled by `resample`, its longer side to 20 pixels, then placed so that its centre of
    mass is nearest to row and column 14, counted from 0. Every rounding is floor(x + 0.5): that, and `resample` in
    place of a library's filter, can be repeated in another language to the last bit or nearly.
    """
    rows, columns = np.flatnonzero(ink.max(1) > 0), np.flatnonzero(ink.max(0) > 0)
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, int(size * 20 / max(box.shape) + 0.5)) for size in box.shape)
    digit = resample(height, box.shape[0]) @ box @ resample(width, box.shape[1]).T
    row, column = np.arange(height) @ digit.sum(1) / digit.sum(), np.arange(width) @ digit.sum(0) / digit.sum()
    top = int(np.clip(np.floor(14.5 - row), 0, SIDE - height))
    left = int(np.clip(np.floor(14.5 - column), 0, SIDE - width))
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = digit * (255 / digit.max()) + 0.5
    return image


def resample(size, old_size):
    """Weights (size, old_size) by which `old_size` pixels become `size`.

    A new pixel is the mean of the old ones under a triangle, at its centre and two new pixels wide, at least two old
    ones: Pillow's BILINEAR, without its 8-bit rounding. It keeps thin lines better than a plain average over areas.
    """
    scale = old_size / size
    distances = np.abs((np.arange(size)[:, None] + 0.5) * scale - np.arange(old_size) - 0.5)  # of the centres
    weights = np.maximum(0, 1 - distances / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


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
