"""Write trained weights: as an ONNX file, into the page that recognises drawn digits, or from a run into weights/.

    python -m study.export                                  weights/best.pth as weights/best.onnx
    python -m study.export runs/NAME/best.pt --out my.onnx  a checkpoint of your own
    python -m study.export --page                           demo/model.js, with five mistakes on MNIST's test set
    python -m study.export runs/NAME                        weights/RECIPE.pth and .json: a run after its last epoch

The ONNX model takes images as they are, uint8 (N, 1, 28, 28) named "images", and returns "logits", float (N, 10).
"""

import base64
import hashlib
import io
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from experiment.checkpoint import WEIGHTS, Checkpoint, load_net
from experiment.cli import Parser, command, path
from experiment.datasets import load_mnist
from experiment.errors import CheckpointError, SettingError
from experiment.files import replace_file, write_json
from model import SIDE, count_parameters
from study.results import describe_machine
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


def save_net(run, folder=WEIGHTS):
    """Write the weights of the finished run in the folder `run`, and what they are, to `folder`; returns their file."""
    checkpoint = Checkpoint.load(Path(run) / "last.pt")
    settings, history, net = checkpoint.settings, checkpoint.history, checkpoint.net()
    final = history.final.evaluation if history.epochs else None
    if history.split != "test" or len(history.epochs) != settings.recipe.epochs:
        raise CheckpointError(f"{run}: expected a finished run without --holdout, trained with --target none")
    content, file = io.BytesIO(), Path(folder) / f"{settings.recipe.name}.pth"
    torch.save({name: value.contiguous() for name, value in net.state_dict().items()}, content)
    about = {
        "network": settings.recipe.network,
        "parameters": count_parameters(net),
        "dataset": checkpoint.dataset,
        "test_images": final.count,
        "correct": final.correct,
        "command": f"python train.py --recipe {settings.description} --target none --seed {settings.seed}",
        "threads": settings.threads,
        **describe_machine(),
        "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
    }
    Path(folder).mkdir(exist_ok=True)
    replace_file(file, content.getvalue())
    write_json(file.with_suffix(".json"), about)
    return file


@command
def main(argv=None):
    parser = Parser(prog="export.py", description=__doc__)
    default = WEIGHTS / "best.pth"
    about = "weights/NAME.pth, a run's checkpoint, or its folder (default: weights/best.pth)"
    parser.add_argument("weights", nargs="?", type=path, default=default, metavar="WEIGHTS", help=about)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=path, metavar="FILE", help="default: beside WEIGHTS, ending in .onnx")
    target.add_argument("--page", action="store_true", help="write demo/model.js instead")
    options = parser.parse_args(argv)
    if Path(options.weights).is_dir():
        print(f"Written: {save_net(options.weights)}")
        return
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
