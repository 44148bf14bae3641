"""Write trained weights as an ONNX file, or into the page that recognises drawn digits.

    python -m study.export                                  weights/best.pth as weights/best.onnx
    python -m study.export runs/NAME/best.pt --out my.onnx  a checkpoint of your own
    python -m study.export --page                           demo/model.js, with five mistakes on MNIST's test set

The ONNX model takes images as they are, uint8 (N, 1, 28, 28) named "images", and returns "logits", float (N, 10).
"""

import base64
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from experiment.checkpoint import WEIGHTS, load_net
from experiment.cli import Parser, command, path
from experiment.datasets import load_mnist
from experiment.errors import SettingError
from experiment.files import replace_file
from model import SIDE, count_parameters
from train import predict

PAGE = Path(__file__).parents[1] / "demo" / "model.js"


def to_onnx(net):
    """The Net in evaluation mode as the bytes of an ONNX file for batches of any size."""
    try:
        program = torch.onnx.export(
            net,
            (torch.zeros(2, 1, SIDE, SIDE, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "N"},),
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise SettingError(f"{error.name} is missing; pip install -r requirements-optional.txt") from error
    model = program.model_proto
    graph = model.graph
    # The exporter notes for each node where it stands in the code, with paths of this machine.
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model.SerializeToString()


def for_page(net, test, logits):
    """What the page needs, as a dict for JSON: the model, and of the Split `test` the five images it is most wrong on.

    `logits`: what the Net answers on the whole of `test`. Bytes are in base64; an image is 28 rows of 28 bytes.
    """
    wrong = (logits.argmax(1) != test.labels).nonzero().flatten()
    losses = F.cross_entropy(logits[wrong], test.labels[wrong], reduction="none")
    hardest = wrong[losses.argsort(descending=True)[:5]].tolist()
    return {
        "parameters": count_parameters(net),
        "images": len(test.labels),
        "wrong": len(wrong),
        "hardest": [{"label": test.labels[i].item(), "pixels": encoded(test.images[i].numpy())} for i in hardest],
        "onnx": encoded(to_onnx(net)),
    }


def encoded(content):
    return base64.b64encode(content).decode()


@command
def main(argv=None):
    parser = Parser(prog="export.py", description=__doc__)
    default = WEIGHTS / "best.pth"
    about = "weights/NAME.pth or a run's checkpoint (default: weights/best.pth)"
    parser.add_argument("weights", nargs="?", type=path, default=default, metavar="WEIGHTS", help=about)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=path, metavar="FILE", help="default: beside WEIGHTS, ending in .onnx")
    target.add_argument("--page", action="store_true", help="write demo/model.js instead")
    options = parser.parse_args(argv)
    net = load_net(options.weights)
    if options.page:
        test = load_mnist().test
        model = for_page(net, test, predict(net, test.images, "fp32"))
        file, content = PAGE, f"const MODEL = {json.dumps(model, indent=2)};\n".encode()
    else:
        file, content = options.out or Path(options.weights).with_suffix(".onnx"), to_onnx(net)
    replace_file(file, content)
    print(f"Written: {file}, {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
