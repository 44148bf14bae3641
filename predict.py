"""Which digit does a picture show?

    python predict.py seven.jpg nine.png         a photograph, scan, screenshot or drawing of one digit each
    python predict.py *.png --json               the answers for another program
    python predict.py *.png --show seen.png      what the net saw, beside each original

From Python: `predict(["seven.jpg", image, array])`. Of an animation the first frame counts. A picture without an answer
is one line on stderr, the others are answered, and the exit code is 1.
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import json
import os

import numpy as np
import torch
from PIL import Image

from experiment.command import Parser, command, echo, path
from experiment.errors import FileError, ImageError
from experiment.files import replace_file
from experiment.images import contact_sheet, find_ink, isolate_digit, open_image, to_grey
from experiment.weights import WEIGHTS, load_net
from model import SIDE

DEFAULT = WEIGHTS / "best.pth"
# Chosen on pictures of training images by `python -m tests.photographs`: results/predict.txt.
UNSURE = 0.6  # probability; label smoothing keeps that of a right answer near 0.9


def predict(images, net=None):
    """Probabilities of the digits 0 to 9, float (N, 10), for N pictures of one digit each.

    `images`: paths, PIL images or arrays, (H, W) or (H, W, channels), with values up to 1, 255 or 65535. `net` is by
    default that of weights/best.pth. ImageError if a picture cannot be read or does not show one digit.
    """
    images = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else images
    return probabilities(net or load_net(DEFAULT), [prepare(image, i) for i, image in enumerate(images)])


@torch.inference_mode()
def probabilities(net, digits):
    """Float (N, 10) for a list of N uint8 arrays (28, 28)."""
    batches = torch.from_numpy(np.array(digits, np.uint8).reshape(-1, 1, SIDE, SIDE)).split(1000)
    return torch.cat([net(batch).softmax(1) for batch in batches])


def prepare(image, index=0):
    """The digit that `image` (path, PIL image or array) shows, in MNIST's form: uint8 (28, 28), white on black."""
    name = image if isinstance(image, (str, os.PathLike)) else f"image {index}"
    try:
        return center_digit(isolate_digit(find_ink(to_grey(open_image(image, name)))))
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from error


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
    top, left = (
        int(np.clip(np.floor(14.5 - np.arange(size) @ digit.sum(other) / digit.sum()), 0, SIDE - size))
        for size, other in ((height, 1), (width, 0))
    )
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


def describe(file, row):
    """What --json says of one picture with the probabilities `row` (10,)."""
    (first, second), (digit, runner_up) = (values.tolist() for values in row.topk(2))
    return {
        "file": file,
        "digit": digit,
        "probability": round(first, 4),
        "runner_up": runner_up,
        "runner_up_probability": round(second, 4),
        "unsure": first < UNSURE,
    }


def line(answer):
    """The answer for one picture in words."""
    text = "{digit} ({probability:.1%}), then {runner_up} ({runner_up_probability:.1%})".format(**answer)
    return f"{answer['file']}: {text}{', unsure' * answer['unsure']}"


@command
def main(argv=None):
    parser = Parser(prog="predict.py", description=__doc__)
    parser.add_argument("images", nargs="+", type=path, metavar="IMAGE", help="picture of one digit")
    parser.add_argument("--weights", type=path, metavar="FILE", help="NAME.pth, or a run's best.pt (default: best.pth)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--show", type=path, metavar="FILE", help="new PNG file: what the net saw, beside each original"
    )
    args = parser.parse_args(argv)
    if args.show and os.path.exists(args.show):  # with --show *.png that is the first picture
        raise FileError(f"--show {args.show} exists already; name a new file")
    torch.set_num_threads(1)  # for one image at a time more are slower
    net, digits, answers = load_net(args.weights or DEFAULT), [], []
    for file in args.images:
        try:
            digits.append(prepare(file))
            answers.append(describe(file, probabilities(net, digits[-1:])[0]))
            if not args.json:
                echo(line(answers[-1]))
        except ImageError as error:
            digits.append(None)
            answers.append({"file": file, "error": str(error)})
            echo(f"predict.py: error: {error}", sys.stderr)
    if args.json:
        echo(json.dumps(answers, indent=2))
    if args.show:
        texts = [answer.get("error") or line(answer) for answer in answers]
        captions = [text.replace(file, os.path.basename(file)) for text, file in zip(texts, args.images)]
        replace_file(args.show, contact_sheet(args.images, digits, captions))
    return int(any("error" in answer for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
