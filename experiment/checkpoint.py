"""A checkpoint: all that a run needs to resume, in one file that can be checked and never runs code."""

import io
import os
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiment.errors import CheckpointError, ExperimentError
from experiment.files import replace_file
from experiment.history import History
from experiment.settings import Recipe, Settings
from model import Net

FORMAT = 7


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its epochs."""

    settings: Settings  # resolved: no "auto"
    dataset: str
    sha256: str  # of the data set
    history: History
    log_bytes: int  # size of log.txt
    model: dict  # state_dict of model.Net(**settings.recipe.network)
    optimizer: dict
    scheduler: dict
    random: dict  # state of torch's default generator, by device

    @classmethod
    def capture(cls, model, optimizer, scheduler, **run):
        """The state of a run in training; `run` holds the fields that are not tensors."""
        device, random = next(model.parameters()).device.type, {"cpu": torch.get_rng_state()}
        if device != "cpu":
            random[device] = torch.get_device_module(device).get_rng_state()
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        return cls(random=random, **{name: part.state_dict() for name, part in parts.items()}, **run)

    def restore(self, model, optimizer, scheduler):
        """Restore model, optimizer, scheduler and RNG state."""
        try:
            model.load_state_dict(self.model)
            optimizer.load_state_dict(self.optimizer)
            scheduler.load_state_dict(self.scheduler)
            for name, state in self.random.items():
                torch.set_rng_state(state) if name == "cpu" else torch.get_device_module(name).set_rng_state(state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"last.pt does not fit its own settings ({type(error).__name__}: {error})") from error

    def net(self):
        """The trained model.Net on the CPU, in evaluation mode."""
        net = Net(**self.settings.recipe.network)
        net.load_state_dict(self.model)
        return net.eval()

    def save(self, path):
        content = {**vars(self), "settings": asdict(self.settings), "history": self.history.to_dict()}
        buffer = io.BytesIO()  # torch.save reports a full disk in its own ways, replace_file in one line
        torch.save({"format": FORMAT, **content}, buffer)
        replace_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path):
        """Load the checkpoint at `path` onto the CPU; CheckpointError if it is damaged or of another format."""
        path = Path(path)
        if not os.path.isfile(path):
            found = "is not a file" if os.path.exists(path) else "does not exist"
            raise CheckpointError(f"{path} {found}; expected last.pt or best.pt of a run")
        content = read(path)
        found = content.pop("format", None) if isinstance(content, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"{path}: found format {found}, expected {FORMAT}; load it with the version that wrote it"
            )
        try:
            recipe = Recipe(**content["settings"]["recipe"])
            content["settings"] = Settings(**{**content["settings"], "recipe": recipe})
            content["history"] = History.from_dict(content["history"])
            checkpoint = cls(**content)
            if not isinstance(checkpoint.log_bytes, int):
                raise TypeError(f"log_bytes is {checkpoint.log_bytes}")
            with torch.device("meta"):  # shapes alone: a wrong width must not claim memory
                shapes = Net(**recipe.network).state_dict()
            check_weights(path, checkpoint.model, shapes)
        except ExperimentError as error:
            raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
        except Exception as error:  # the constructors have a dozen types for wrong content
            raise CheckpointError(f"{path} is not a whole checkpoint ({type(error).__name__}: {error})") from error
        return checkpoint


def read(path):
    """The content of a checkpoint's file, whose check sums are compared; runs no code from it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load compares no check sums
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad check sum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be loaded: it is damaged, or holds more than tensors and plain values"
        ) from error
    except Exception as error:  # zipfile and torch have a dozen types for what is wrong with a file
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be loaded: {reason}; expected a whole last.pt or best.pt of a run"
        ) from error


def check_weights(path, weights, expected):
    """CheckpointError unless `weights` has the names, shapes and dtypes of the state dict `expected`."""
    found = {name: (value.shape, value.dtype) for name, value in weights.items()}
    for name, value in expected.items():
        if found.pop(name, None) != (value.shape, value.dtype):
            raise CheckpointError(f"{path}: {name} is not of shape {tuple(value.shape)}, as its network has it")
    if found:
        raise CheckpointError(f"{path} holds {', '.join(found)}, which its network does not have; use another file")
