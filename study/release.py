"""Publish the weights of a finished run.

python -m study.release runs/NAME      write weights/RECIPE.pth and .json: this run after its last epoch
"""

import hashlib
import io
import sys
from pathlib import Path

import torch

from experiment.checkpoint import WEIGHTS, Checkpoint
from experiment.cli import Parser, command, path
from experiment.errors import CheckpointError
from experiment.files import replace_file, write_json
from model import count_parameters
from study.results import describe_machine


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
    parser = Parser(prog="release.py", description=__doc__)
    parser.add_argument("run", type=path, metavar="RUN", help="folder of a finished run")
    print(f"Weights: {save_net(parser.parse_args(argv).run)}")


if __name__ == "__main__":
    sys.exit(main())
