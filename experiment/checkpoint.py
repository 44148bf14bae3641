"""Checkpoints: everything a run needs to resume, in one verifiable file whose loading never executes code."""

import io
import zipfile
from dataclasses import asdict, dataclass

import torch

from experiment.errors import CheckpointError, reading
from experiment.files import replace_file
from experiment.history import History
from experiment.settings import Recipe, Settings
from model import Net

FORMAT = 11


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its epochs."""

    settings: Settings  # with device and threads decided
    processes: int  # that trained it
    dataset: str
    sha256: str  # of the data set
    history: History
    log_bytes: int  # size of log.txt
    model: dict  # state_dict of model.Net(**settings.recipe.network)
    optimizer: dict
    scheduler: dict
    hardness: torch.Tensor  # (N,), of the training images, as data.TrainLoader keeps it
    random: dict  # state of torch's default generator, by device

    @classmethod
    def capture(cls, net, optimizer, scheduler, loader, **run):
        """The state of a run in training; `run` holds the fields that are not tensors."""
        device, random = next(net.parameters()).device.type, {"cpu": torch.get_rng_state()}
        if device != "cpu":
            random[device] = torch.get_device_module(device).get_rng_state()
        states = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        return cls(random=random, hardness=loader.hardness, **states, **run)

    def restore(self, net, optimizer, scheduler, loader):
        """Put the captured state back into these objects and into the random number generators."""
        try:
            loader.hardness = self.hardness.to(loader.labels.device).view(len(loader.labels))
            net.load_state_dict(self.model)
            optimizer.load_state_dict(self.optimizer)
            scheduler.load_state_dict(self.scheduler)
            for device, state in self.random.items():
                module = torch.random if device == "cpu" else torch.get_device_module(device)
                module.set_rng_state(state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"last.pt does not match its settings ({type(error).__name__}: {error})") from error

    def net(self):
        """The trained model.Net on the CPU, in evaluation mode."""
        net = Net(**self.settings.recipe.network)
        net.load_state_dict(self.model)
        return net.eval()

    def save(self, path):
        content = {**vars(self), "settings": asdict(self.settings), "history": asdict(self.history)}
        buffer = io.BytesIO()  # torch.save reports a full disk in several ways, replace_file in one line
        torch.save({"format": FORMAT, **content}, buffer)
        replace_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path):
        """Load the checkpoint at `path` onto the CPU; CheckpointError if it is damaged or of another format."""
        with reading(path, "expected an intact checkpoint, or train anew", CheckpointError):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load compares no checksums
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = content.pop("format", None)
            if found == FORMAT:
                return cls.from_dict(content)
        raise CheckpointError(f"{path}: found format {found}, expected {FORMAT}; use the version that wrote it")

    @classmethod
    def from_dict(cls, content):
        recipe = Recipe(**content["settings"]["recipe"])
        settings = Settings(**{**content["settings"], "recipe": recipe})
        checkpoint = cls(**{**content, "settings": settings, "history": History.from_dict(content["history"])})
        with torch.device("meta"):  # shapes alone: a wrong width must not claim memory
            states = checkpoint.model, Net(**recipe.network).state_dict()
        found, expected = ({name: (value.shape, value.dtype) for name, value in state.items()} for state in states)
        if found != expected or not isinstance(checkpoint.log_bytes, int):
            raise CheckpointError("the weights do not match the settings")
        if not checkpoint.hardness.isfinite().all():
            raise CheckpointError("the hardness of the images is not finite")
        return checkpoint
