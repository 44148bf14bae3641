"""Write trained weights: as an ONNX file, into the page that recognises drawn digits, or from a run into weights/.

    python -m study.export                                  weights/best.pth as weights/best.onnx
    python -m study.export runs/NAME/best.pt --out my.onnx  a checkpoint of your own
    python -m study.export --page                           demo/model.js, with five mistakes on MNIST's test set
    python -m study.export runs/NAME                        weights/RECIPE.pth and .json: a run after its last epoch;
                                                            of one with --holdout, the temperature of these weights

The ONNX model takes images as they are, uint8 (N, 1, 28, 28) named "images", and returns "logits", float (N, 10).
"""

import hashlib
import io
import json
import sys
from base64 import b64encode
from pathlib import Path

import torch
import torch.nn.functional as F

from experiment.checkpoint import Checkpoint
from experiment.cli import Parser, command, path
from experiment.datasets import load_data, load_mnist
from experiment.errors import CheckpointError, SettingError
from experiment.files import replace_file, write_json
from experiment.weights import WEIGHTS, find_net, load_net
from ink import SMALL
from model import SIDE, count_parameters
from predict import UNSURE
from study.results import describe_machine
from study.runs import ROOT
from train import predict

PAGE = ROOT / "demo" / "model.js"


def to_onnx(net):
    """The Net in evaluation mode as the bytes of an ONNX file for batches of any size."""
    images = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.uint8)
    try:
        names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "N"},)}
        program = torch.onnx.export(net, (images,), verbose=False, **names)
    except ImportError as error:
        raise SettingError(f"{error.name} is missing; pip install -r requirements-optional.txt") from error
    model = program.model_proto  # a new one each time
    graph = model.graph
    # The exporter notes for each node where it stands in the code, with paths of this machine.
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model.SerializeToString()


def for_page(net, test, logits):
    """What the page needs: the model and the five images of `test` that `logits` are most wrong on; bytes in base64."""
    wrong = logits.argmax(1) != test.labels
    hardest = (wrong * F.cross_entropy(logits, test.labels, reduction="none")).argsort(descending=True)[:5]
    five = zip(test.labels[hardest].tolist(), logits[hardest].argmax(1).tolist(), test.images[hardest].numpy())
    return {
        "parameters": count_parameters(net),
        "images": len(test.labels),
        "wrong": wrong.sum().item(),
        "temperature": net.temperature,
        "unsure": UNSURE,
        "smallest": SMALL,
        "hardest": [{"label": true, "answer": said, "pixels": b64encode(image).decode()} for true, said, image in five],
        "onnx": b64encode(to_onnx(net)).decode(),
    }


def save_net(run, folder=WEIGHTS):
    """Write the weights of the finished run in the folder `run`, and what they are, to `folder`; returns their file."""
    checkpoint = Checkpoint.load(Path(run) / "last.pt")
    settings, history, net = checkpoint.settings, checkpoint.history, checkpoint.net()
    if history.split != "test" or len(history.epochs) != settings.recipe.epochs:
        raise CheckpointError(f"{run}: expected a finished run without --holdout, trained with --target none")
    file, buffer = Path(folder) / f"{settings.recipe.name}.pth", io.BytesIO()
    torch.save({name: value.contiguous() for name, value in net.state_dict().items()}, buffer)
    content, final = buffer.getvalue(), history.final.evaluation
    about = {
        "network": settings.recipe.network,
        "parameters": count_parameters(net),
        "dataset": checkpoint.dataset,
        "test_images": final.count,
        "correct": final.correct,
        "command": f"python train.py --recipe {settings.description} --target none --seed {settings.seed}",
        "threads": settings.threads,
        **describe_machine(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "temperature": 1.0,  # fit_temperature finds a better one
    }
    replace_file(file, content)
    write_json(file.with_suffix(".json"), about)
    return file


def fit_temperature(run, folder=WEIGHTS):
    """Write the temperature that fits the run in the folder `run` to its held-out images to the weights of its recipe.

    It divides the logits, so that probabilities are as high as answers are often right (arXiv:1706.04599).
    """
    checkpoint = Checkpoint.load(Path(run) / "last.pt")
    images, labels = load_data(checkpoint.settings).holdout
    logits, temperatures = predict(checkpoint.net(), images, "fp32"), torch.arange(20, 150) / 100
    best = torch.stack([F.cross_entropy(logits / value, labels) for value in temperatures]).argmin()
    file = Path(folder) / f"{checkpoint.settings.recipe.name}.json"
    write_json(file, json.loads(file.read_text()) | {"temperature": round(temperatures[best].item(), 2)})
    return file


@command
def main(argv=None):
    parser = Parser(prog="export.py", description=__doc__)
    about = "default, best or tiny, a NAME.pth, a run's checkpoint, or its folder (default: best)"
    parser.add_argument("weights", nargs="?", type=path, default=WEIGHTS / "best.pth", metavar="WEIGHTS", help=about)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=path, metavar="FILE", help="default: beside WEIGHTS, ending in .onnx")
    target.add_argument("--page", action="store_true", help="write demo/model.js instead")
    args = parser.parse_args(argv)
    source = Path(args.weights)
    if args.out and Path(args.out).suffix != ".onnx":
        parser.error(f"--out: found {args.out}, expected a name that ends in .onnx")
    if source.is_dir() and not (args.out or args.page):
        is_holdout = Checkpoint.load(source / "last.pt").settings.holdout
        file = fit_temperature(source) if is_holdout else save_net(source)
    elif args.page:
        net, test, file = load_net(source), load_mnist().test, PAGE
        model = for_page(net, test, predict(net, test.images, "fp32"))
        replace_file(file, f"const MODEL = {json.dumps(model, indent=2)};\n".encode())
    else:
        file = Path(args.out or find_net(source).with_suffix(".onnx"))
        replace_file(file, to_onnx(load_net(source)))
    print(f"Written: {file}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
