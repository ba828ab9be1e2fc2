"""Data sets as tensors that live on the training device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training import parallel
from training.augment import cutout, mixup, random_crop, random_flip
from training.config import Config, flag
from training.datasets import read
from training.inputs import Inputs

# The split is the same for every seed, so that runs with different seeds compare on equal images.
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs and labels of one part of a data set, on the training device.

    Attributes:
        inputs: ``(N, channels, height, width)`` uint8 images, or ``(N, features)`` float32 points.
        labels: ``(N,)`` int64 class indices.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Data(Inputs):
    """A data set, split and ready to train on.

    Attributes:
        train: What the weights are fitted to.
        validation: Held out of training; chooses the best epoch.
        test: Looked at once, at the end.
        digest: Checksum of the whole data set.
    """

    train: Split
    validation: Split
    test: Split
    digest: str = ""


def load(config: Config, device: torch.device) -> Data:
    """Read the data set of ``config``, split it and move it to ``device``.

    Raises:
        ValueError: The data set is absent, damaged, too small or unfit for the settings.
        OSError: Its files cannot be read.
    """
    with parallel.first_goes_first():
        raw = read(config)
    raw.check(config.dataset)
    for name in ("augment", "cutout", "test_flip"):
        if getattr(config, name) and raw.train_inputs.ndim != 4:
            raise ValueError(f"{flag(name)} needs images, which {config.dataset} has not")
    order = torch.randperm(
        len(raw.train_labels), generator=torch.Generator().manual_seed(SPLIT_SEED)
    )
    held_out = max(1, round(config.validation * len(order)))
    if held_out >= len(order):
        raise ValueError(
            f"{config.dataset} has {len(order)} training examples, {held_out} of them held out "
            "for validation; none are left to train on"
        )
    kept = order[held_out:][: config.limit_train]
    processes = parallel.count()
    if config.batch_size % processes or len(kept) < processes:
        raise ValueError(
            f"--batch-size {config.batch_size} of {len(kept)} training examples cannot be shared "
            f"equally by {processes} processes"
        )

    def split(inputs: Tensor, labels: Tensor, rows: Tensor | slice = slice(None)) -> Split:
        return Split(inputs[rows].to(device), labels[rows].to(device))

    train = split(raw.train_inputs, raw.train_labels, kept)
    mean, std = _statistics(train.inputs)
    return Data(
        train=train,
        validation=split(raw.train_inputs, raw.train_labels, order[:held_out]),
        test=split(raw.test_inputs, raw.test_labels),
        input_shape=tuple(train.inputs.shape[1:]),
        classes=raw.classes,
        mean=mean,
        std=std,
        digest=raw.digest(),
    )


def steps_per_epoch(config: Config, data: Data) -> int:
    """Return the number of batches in a pass over the training set."""
    return max(1, len(data.train) // config.batch_size)


class TrainingBatches:
    """Batches without end: pass after pass over the training set, each in a new random order.

    All batches have the same size: the few examples left over are skipped, different ones in
    every epoch, so that no step rests on one or two examples. Inputs are as raw as in
    ``data.train``, augmented; labels come with them: class indices or, under mixup, probabilities.
    Of several processes each gets its share of the same batches.
    """

    def __init__(self, config: Config, data: Data) -> None:
        """Begin with the order and the augmentation that the seed of ``config`` gives."""
        self._config = config
        self._data = data
        self._device = data.train.labels.device
        self._generator = torch.Generator(self._device).manual_seed(config.seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._beginning = self._generator.get_state()
        self._order = torch.randperm(
            len(self._data.train), generator=self._generator, device=self._device
        )
        self._step = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        config, train = self._config, self._data.train
        if self._step == steps_per_epoch(config, self._data):
            self._begin_epoch()
        rows = self._order[self._step * config.batch_size : (self._step + 1) * config.batch_size]
        self._step += 1
        inputs, labels = train.inputs[rows], train.labels[rows]
        if config.augment:
            inputs = random_crop(inputs, config.crop_padding, self._generator)
            if config.flip:
                inputs = random_flip(inputs, self._generator)
        if config.cutout:
            inputs = cutout(inputs, config.cutout, self._generator)
        if config.mixup:
            classes = len(self._data.classes)
            inputs, labels = mixup(inputs, labels, classes, config.mixup, self._generator)
        inputs, labels = parallel.share(inputs, labels)
        return inputs, labels

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch, and the generator's state now and at its beginning."""
        return {
            **self._source(),
            "step": self._step,
            "beginning": self._beginning,
            "generator": self._generator.get_state(),
        }

    def _source(self) -> dict[str, Any]:
        """Return what has to be the same for batches to go on."""
        data = self._data
        return {
            "examples": len(data.train),
            "device": self._device.type,
            "data set": f"sha256 {data.digest[:16]}",
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called.

        Raises:
            ValueError: That was with other examples, or another kind of device.
        """
        for name, value in self._source().items():
            if state.get(name, value) != value:  # older checkpoints know less
                raise ValueError(
                    f"the run to resume has another {name}: {state[name]} there, {value} here"
                )
        self._generator.set_state(state["beginning"])
        self._begin_epoch()  # draws the order again
        self._step = state["step"]
        self._generator.set_state(state["generator"])


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, shaped to broadcast against an input."""
    per_channel = inputs.transpose(0, 1).flatten(1)
    # Channel by channel: a float copy of a whole large data set may not fit on the device.
    dtype = torch.get_default_dtype()
    mean = torch.stack([channel.to(dtype).mean() for channel in per_channel])
    std = torch.stack([channel.to(dtype).std(correction=0) for channel in per_channel])
    std[std == 0] = 1.0  # a constant channel, e.g. a black border around all images
    shape = (-1,) + (1,) * (inputs.ndim - 2)
    return mean.view(shape), std.view(shape)
