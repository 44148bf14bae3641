"""Which digit does a picture show?

    python predict.py seven.jpg nine.png         a photograph, scan, screenshot or drawing of one digit or rows of them
    python predict.py *.png --json               the answers for another program
    python predict.py *.png --show seen.png      what the net saw, beside each original
    python predict.py --csv test.csv             a submission to Kaggle's competition

From Python: `predict(["seven.jpg", image, array])`. Of an animation the first frame counts. A picture without an answer
is one line on stderr, the others are answered, and the exit code is 1.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiment.cli import Parser, command, path
from experiment.errors import FileError
from experiment.files import replace_file
from experiment.sources import read_csv
from experiment.weights import WEIGHTS, load_net
from model import SIDE
from photo import ImageError, contact_sheet, prepare, read_rows

DEFAULT = WEIGHTS / "best.pth"
# Chosen on pictures of training images by `python -m study.photographs`: results/predict.txt.
UNSURE = 0.97  # probability


def predict(images, net=None):
    """Probabilities of the digits 0 to 9, float (N, 10), for N pictures of one digit each.

    `images`: one or several paths, PIL images or arrays, (H, W) or (H, W, channels), with values up to 1, 255 or 65535.
    `net` is by default that of weights/best.pth. ImageError if a picture cannot be read or does not show one digit.
    """
    one_array = isinstance(images, np.ndarray) and (images.ndim == 2 or images.shape[2:] in ((1,), (3,), (4,)))
    images = [images] if one_array or isinstance(images, (str, os.PathLike, Image.Image)) else images
    return probabilities(net or load_net(DEFAULT), [prepare(image, f"image {i}") for i, image in enumerate(images)])


@torch.inference_mode()
def probabilities(net, digits):
    """Float (N, 10) for a list of N uint8 arrays (28, 28).

    The logits are divided by the temperature that load_net found beside the weights (arXiv:1706.04599).
    """
    batches = torch.from_numpy(np.array(digits, np.uint8).reshape(-1, 1, SIDE, SIDE)).split(1000)
    return torch.cat([(net(batch) / getattr(net, "temperature", 1.0)).softmax(1) for batch in batches])


def describe(file, rows, found):
    """What --json says of one picture: `rows` as of photo.read_rows, the probabilities `found` (N, 10) of their digits.

    With several digits, the probability is that of the least sure one, and there is no "digit" or runner-up.
    """
    values, classes = found.topk(2)
    (first, second), (answers, runners_up) = values.T.tolist(), classes.T.tolist()
    boxes, rest, one = [box for row in rows for box, _ in row], iter(answers), len(answers) == 1
    return {
        "file": file,
        "text": "\n".join("".join(str(next(rest)) for _ in row) for row in rows),
        "digit": answers[0] if one else None,
        "probability": round(min(first), 4),
        "runner_up": runners_up[0] if one else None,
        "runner_up_probability": round(second[0], 4) if one else None,
        "unsure": min(first) < UNSURE,
        "digits": [
            {"digit": digit, "probability": round(probability, 4), "box": box}
            for digit, probability, box in zip(answers, first, boxes)
        ],
    }


def line(answer):
    """The answer for one picture in words."""
    if answer["digit"] is None:
        least = min(answer["digits"], key=lambda digit: digit["probability"])
        text = f"least sure: {least['digit']}, {least['probability']:.0%}"
        text = "\n".join(f"{answer['file']}: {row}" for row in answer["text"].split("\n")) + f" ({text})"
    else:
        text = "{file}: {digit} ({probability:.1%}), then {runner_up} ({runner_up_probability:.1%})".format(**answer)
    return f"{text}, unsure" if answer["unsure"] else text


def write_submission(file, net):
    """Write the digits of Kaggle's test.csv, `file`, to submission.csv beside it."""
    [split] = read_csv(file, labelled=False)
    answers = probabilities(net, split.images.numpy()).argmax(1).tolist()
    rows = ["ImageId,Label", *(f"{number},{digit}" for number, digit in enumerate(answers, 1))]
    replace_file(file.with_name("submission.csv"), "\n".join(rows + [""]).encode())
    print(f"Written: {file.with_name('submission.csv')}, {len(answers)} digits")


@command
def main(argv=None):
    parser = Parser(prog="predict.py", description=__doc__)
    parser.add_argument("images", nargs="*", type=path, metavar="IMAGE", help="picture of digits")
    about = "Kaggle's test.csv, whose digits go into submission.csv beside it"
    parser.add_argument("--csv", type=path, metavar="FILE", help=about)
    about = "default, best or tiny, a run's folder, its best.pt, or a NAME.pth (default: best)"
    parser.add_argument("--weights", type=path, metavar="NET", default=DEFAULT, help=about)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    about = "new PNG file: what the net saw, beside each original"
    parser.add_argument("--show", type=path, metavar="FILE", help=about)
    args = parser.parse_args(argv)
    if bool(args.images) == bool(args.csv):
        parser.error("IMAGE: expected pictures, or --csv alone")
    if args.show and os.path.exists(args.show):  # with --show *.png that is the first picture
        raise FileError(f"--show {args.show} exists already; name a new file")
    torch.set_num_threads(1)  # for one image at a time more are slower
    net, answers, shown = load_net(args.weights), [], []
    if args.csv:
        return write_submission(Path(args.csv), net)
    for file in args.images:
        try:
            rows = read_rows(file, file)
            digits = [pair for row in rows for pair in row]
            answers.append(describe(file, rows, probabilities(net, [digit for _, digit in digits])))
            text = line(answers[-1])
            if not args.json:
                print(text)
        except ImageError as error:
            digits, text = [], str(error)
            answers.append({"file": file, "error": text})
            print(f"predict.py: error: {text}", file=sys.stderr)
        shown.append((file, digits, text.replace(file, os.path.basename(file))))
    if args.json:
        print(json.dumps(answers, indent=2))
    if args.show:
        replace_file(args.show, contact_sheet(shown))
    return int(any("error" in answer for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
