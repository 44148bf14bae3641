"""From a grey picture to the digits in it, as MNIST's makers prepared theirs: paper, lines, ink, parts, rows."""

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from model import SIDE

# Chosen on pictures of training images by `python -m study.photographs`: results/predict.txt.
EVEN = 0.015  # standard deviation of brightness up to which paper is even
FAINT = 0.1  # contrast to the paper up to which nothing is ink
NOISE = 5  # the same in standard deviations of the paper
RINGING = 0.04  # contrast, of the strokes', up to which a lossy format adds ink beside them
CLUTTER = 2  # contrast of a digit to the paper, at least, in that of the strongest 1% beside it
SMALL = 0.07  # size of a digit, of the picture's side; ink in a part of a digit, of the largest part's
SIMILAR = 0.6  # height of another digit, of the tallest part's; contrast of strokes, not of lines, of the strongest


def find_ink(grey, paper):
    """By how much each pixel of `grey` differs from the `paper` under it, floats (H, W) in 0..1: 1 is black on white.

    The contrast is relative to the paper, so that ink in a shadow counts as much as ink beside it. Light ink on dark
    paper is inverted.
    """
    darker = paper - grey
    if (darker * darker * darker).sum() < 0:  # what differs most is lighter
        grey, paper = 1 - grey, 1 - paper
    return 1 - grey / np.maximum(paper, 0.1)


def find_papers(grey):
    """Yield estimates of the paper's brightness under each pixel of `grey`, floats (H, W), from a copy of 40 pixels.

    If the copy's edge is even, or changes evenly, so does the paper. Else, as with a shadow, it is a median filter half
    as wide and high as the picture. The other estimate comes second, for a picture in which the first finds no digit.
    """
    image = Image.fromarray(grey.astype(np.float32))
    image.thumbnail((40, 40), Image.Resampling.BOX)
    copy = np.asarray(image)
    rows, columns = middles(copy.shape)
    edge = np.zeros(copy.shape, bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    plane = np.stack(np.broadcast_arrays(1.0, rows, columns), -1)[edge]
    slope = np.linalg.lstsq(plane, copy[edge], rcond=None)[0]
    level, down, right = slope
    rows, columns = middles(grey.shape)
    even = level + down * rows + right * columns
    is_even = (copy[edge] - plane @ slope).std() <= EVEN
    if is_even:
        yield even
    paper = ndimage.median_filter(copy, [size // 2 | 1 for size in copy.shape], mode="nearest")
    yield np.asarray(Image.fromarray(paper).resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    if not is_even:
        yield even


def drop_lines(ink):
    """`ink`, floats (H, W), without the lines of ruled or squared paper: straight, from edge to edge, and fainter.

    A line is what most of eight strips have at about the same height; from each strip its median there is taken away.
    """
    strongest = np.quantile(ink, 0.999)
    for picture in (ink, ink.T) if min(ink.shape) > 80 else ():  # in a smaller picture strips are mostly digit
        strips = np.array_split(np.arange(picture.shape[1]), 8)
        profiles = np.stack([np.median(picture[:, strip[::3]], 1) for strip in strips])  # a third of it will do
        around = ndimage.maximum_filter1d(profiles, len(picture) // 25 | 1, axis=1)
        spanning, highest = np.quantile(around, (0.25, 0.75), axis=0)
        spanning[spanning < FAINT / 2] = 0  # noise
        if ndimage.label((spanning > 0) & (around.min(0) > SIMILAR * highest))[1] < 3:
            spanning[highest > SIMILAR * strongest] = 0  # a stroke
        for strip, profile in zip(strips, profiles.clip(0, spanning)):
            picture[:, strip] -= profile[:, None]
    return ink


def middles(shape):
    """The middles of rows (H, 1) and of columns (1, W), as fractions of the height and width in `shape`."""
    return np.ix_(*((np.arange(size) + 0.5) / size for size in shape))


def find_rows(ink, may_be_cut=True):
    """The digits in `ink`, floats (H, W), as rows of pairs: box (left, top, right, bottom), and the ink in it.

    A digit is every connected part of the ink, except specks, and except parts cut by the picture's edge if any other
    part remains; parts beside each other are several digits.
    """
    ink, stroke, low = drop_faint(ink)
    labels, count = ndimage.label(ink, np.ones((3, 3)))
    boxes = np.array([[(side.start, side.stop) for side in box] for box in ndimage.find_objects(labels)])
    start, stop = np.moveaxis(boxes.reshape(-1, 2, 2), -1, 0)
    extent = stop - start  # height and width of every part
    mass = ndimage.sum_labels(ink, labels, np.arange(count) + 1)
    cut = ((start == 0) | (stop == ink.shape)).any(1)
    bar = cut & (8 * extent.min(1) < extent.max(1)) & (extent != ink.shape).any(1)  # a table's rim, a line
    large = extent.max(1) > max(3, SMALL * max(ink.shape))
    inside = (start[:, None] < start[large]) & (stop[:, None] > stop[large])
    mass[bar | (inside.all(2).sum(1) > 1)] = 0  # or a table around digits
    digit, clutter = np.where(cut, 0, mass), CLUTTER
    if may_be_cut and digit.max(initial=0) <= SMALL * mass.max(initial=0):  # nothing but what the edge cuts
        digit, clutter = mass, 2 * CLUTTER
    kept = np.flatnonzero(digit > SMALL * digit.max(initial=0))
    groups = [kept]
    ratio = extent[:, 0] / extent[kept, 0].max(initial=1)
    tall = np.flatnonzero((mass > SMALL * digit.max(initial=0)) & (ratio >= SIMILAR) & (ratio <= 1 / SIMILAR))
    if (stop[tall][:, None] <= start[tall]).any():
        groups = group(np.union1d(kept, tall), start, stop)  # with those that the edge cuts
    smallest = SMALL * max(ink.shape) / (3 if len(groups) > 1 else 1)
    if extent[kept].max(initial=0) < max(3, smallest) or stroke < clutter * low:
        return []
    rows = []
    for parts in groups:
        (top, left), (bottom, right) = start[parts].min(0), stop[parts].max(0)
        own = np.isin(labels[top:bottom, left:right], parts + 1)
        found = ((int(left), int(top), int(right), int(bottom)), np.where(own, ink[top:bottom, left:right], 0))
        row = next((row for row in rows if any(box[1] <= (top + bottom) / 2 <= box[3] for box, _ in row)), None)
        if row is None:
            rows.append(row := [])
        row.append(found)
    return [sorted(row, key=lambda found: found[0][0]) for row in sorted(rows, key=lambda row: row[0][0][1])]


def group(parts, start, stop):
    """The `parts`, with boxes from `start` to `stop`, joined to digits where one lies mostly above another."""
    size, common = stop - start, np.minimum(stop[:, None], stop) - np.maximum(start[:, None], start)
    height, width = np.moveaxis(size, 1, 0)
    beneath = common[..., 1] > np.minimum(width[:, None], width) / 2
    a_part = np.minimum(height[:, None], height) < SIMILAR * height[parts].max()
    near = common[..., 0] > a_part * height[parts].max() / -4  # negative: a gap
    numbers = connected_components((beneath & near)[np.ix_(parts, parts)])[1]
    groups = [parts[numbers == number] for number in range(numbers.max() + 1)]
    heights = [stop[group, 0].max() - start[group, 0].min() for group in groups]
    return [group for group, height in zip(groups, heights) if height > max(heights) / 3]


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
    The box is that of all ink above 0; the middle is row and column 14, counted from 0. Every rounding is
    floor(x + 0.5): that, and `resample` in place of a library's filter, can be repeated in another language.
    """
    rows, columns = np.flatnonzero(ink.max(1) > 0), np.flatnonzero(ink.max(0) > 0)
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, int(size * 20 / max(box.shape) + 0.5)) for size in box.shape)
    digit = resample(height, box.shape[0]) @ box @ resample(width, box.shape[1]).T
    row, column = np.arange(height) @ digit.sum(1) / digit.sum(), np.arange(width) @ digit.sum(0) / digit.sum()
    top = int(np.clip(np.floor(14.5 - row), 0, SIDE - height))
    left = int(np.clip(np.floor(14.5 - column), 0, SIDE - width))
    image = np.zeros((SIDE, SIDE), np.uint8)
    strongest = np.quantile(digit[digit > 0.2 * digit.max()], 0.9)
    image[top : top + height, left : left + width] = (digit * (255 / strongest) + 0.5).clip(0, 255)
    return image


def resample(size, old_size):
    """Weights (size, old_size) by which `old_size` pixels become `size`: Pillow's BILINEAR, without its 8-bit rounding.

    A new pixel is the mean of the old ones under a triangle, at its centre and two new pixels wide, at least two old.
    """
    scale = old_size / size
    distances = np.abs((np.arange(size)[:, None] + 0.5) * scale - np.arange(old_size) - 0.5)  # of the centres
    weights = np.maximum(0, 1 - distances / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)
