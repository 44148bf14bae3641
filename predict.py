"""Which digit does a picture show?

    python predict.py seven.jpg nine.png         a photograph, scan, screenshot or drawing of one digit each
    python predict.py *.png --json               the answers for another program
    python predict.py *.png --show seen.png      what the net saw, beside each original

From Python: `predict(["seven.jpg", image, array])`. Of an animation the first frame counts. A picture without an answer
is one line on stderr, the others are answered, and the exit code is 1.
"""

import json
import os
import sys

import numpy as np
import torch
from PIL import Image

from experiment.checkpoint import WEIGHTS, load_net
from experiment.cli import Parser, command, path
from experiment.errors import FileError
from experiment.files import replace_file
from model import SIDE
from photo import ImageError, contact_sheet, prepare

DEFAULT = WEIGHTS / "best.pth"
# Chosen on pictures of training images by `python -m study.photographs`: results/predict.txt.
UNSURE = 0.6  # probability; label smoothing keeps that of a right answer near 0.9


def predict(images, net=None):
    """Probabilities of the digits 0 to 9, float (N, 10), for N pictures of one digit each.

    `images`: paths, PIL images or arrays, (H, W) or (H, W, channels), with values up to 1, 255 or 65535.
    `net` is by default weights/best.pth. ImageError if a picture cannot be read or does not show one digit.
    """
    images = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else images
    return probabilities(net or load_net(DEFAULT), [prepare(image, i) for i, image in enumerate(images)])


@torch.inference_mode()
def probabilities(net, digits):
    """Float (N, 10) for a list of N uint8 arrays (28, 28)."""
    batches = torch.from_numpy(np.array(digits, np.uint8).reshape(-1, 1, SIDE, SIDE)).split(1000)
    return torch.cat([net(batch).softmax(1) for batch in batches])


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
    text = "{file}: {digit} ({probability:.1%}), then {runner_up} ({runner_up_probability:.1%})".format(**answer)
    return f"{text}, unsure" if answer["unsure"] else text


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
                print(line(answers[-1]))
        except ImageError as error:
            digits.append(None)
            answers.append({"file": file, "error": str(error)})
            print(f"predict.py: error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps(answers, indent=2))
    if args.show:
        texts = [answer.get("error") or line(answer) for answer in answers]
        captions = [text.replace(file, os.path.basename(file)) for text, file in zip(texts, args.images)]
        replace_file(args.show, contact_sheet(args.images, digits, captions))
    return int(any("error" in answer for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
