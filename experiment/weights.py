"""Trained weights to share: NAME.pth, a plain state dict, and NAME.json, what it is and how it was made.

python -m experiment.weights runs/NAME      write weights/RECIPE.pth and .json: this run after its last epoch
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import hashlib
import io
import json
from pathlib import Path

import torch

from experiment.checkpoint import Checkpoint
from experiment.command import Parser, command, echo, path
from experiment.errors import CheckpointError
from experiment.files import replace_file, write_json
from experiment.machine import describe_machine
from model import Net, count_parameters

WEIGHTS = Path(__file__).parents[1] / "weights"


def load_net(file):
    """The Net in evaluation mode of a NAME.pth with its NAME.json, or of a run's checkpoint (.pt)."""
    file = Path(file)
    if file.suffix == ".pt":
        return Checkpoint.load(file).net()
    try:
        about, content = json.loads(file.with_suffix(".json").read_text(encoding="utf-8")), file.read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise ValueError(f"its SHA-256 is not the one in {file.with_suffix('.json').name}")
        net = Net(**about["network"])
        net.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    except Exception as error:  # JSON, torch and Net have a dozen types for what is wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file} cannot be loaded ({reason}); expected weights/NAME.pth beside its NAME.json, or a run's best.pt"
        ) from error
    return net.eval()


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
    parser = Parser(prog="weights.py", description=__doc__)
    parser.add_argument("run", type=path, metavar="RUN", help="folder of a finished run")
    echo(f"Weights: {save_net(parser.parse_args(argv).run)}")


if __name__ == "__main__":
    sys.exit(main())
