"""What a trained model has to know about its inputs: shape, normalisation and class names."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.atomic import atomic_write


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs that a model was, or will be, trained on.

    Attributes:
        input_shape: Shape of one input: ``(channels, height, width)`` uint8 or ``(features,)``.
        classes: Class names; a label is an index into them.
        mean: Per-channel mean of the training inputs, shaped to broadcast against an input.
        std: Per-channel standard deviation, likewise.
    """

    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor

    @property
    def has_images(self) -> bool:
        """Whether the inputs are images."""
        return len(self.input_shape) == 3

    @property
    def device(self) -> torch.device:
        """Where the model and its inputs live."""
        return self.mean.device

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return raw inputs with the training set's mean 0 and deviation 1, in torch's float."""
        return (inputs.to(self.mean.dtype) - self.mean) / self.std

    def save(self, path: Path) -> None:
        """Write these four attributes to the JSON file ``path``."""
        content = {
            "input_shape": self.input_shape,
            "classes": self.classes,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }
        with atomic_write(path) as file:
            file.write(json.dumps(content).encode() + b"\n")


def load_inputs(path: Path, device: torch.device) -> Inputs:
    """Read what ``Inputs.save`` wrote, onto ``device``.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        shape = tuple(int(size) for size in content["input_shape"])
        classes = tuple(str(name) for name in content["classes"])
        per_channel = (-1,) + (1,) * (len(shape) - 1)
        mean, std = (
            torch.tensor(content[name], dtype=torch.get_default_dtype(), device=device)
            .broadcast_to(shape[0])
            .view(per_channel)
            for name in ("mean", "std")
        )
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    return Inputs(input_shape=shape, classes=classes, mean=mean, std=std)
