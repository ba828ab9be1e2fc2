"""Data sets as tensors that live on the training device."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment import random_crop, random_flip
from training.config import Config
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
    """

    train: Split
    validation: Split
    test: Split


def load(config: Config, device: torch.device) -> Data:
    """Read the data set of ``config``, split it and move it to ``device``.

    Raises:
        ValueError: The data set is absent, damaged, too small or unfit for the settings.
        OSError: Its files cannot be read.
    """
    raw = read(config)
    raw.check(config.dataset)
    if config.augment and raw.train_inputs.ndim != 4:
        raise ValueError(f"--augment needs images, which {config.dataset} has not")
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
    if config.batch_norm and min(config.batch_size, len(kept)) == 1:
        raise ValueError("--batch-norm needs at least 2 training examples in a batch")

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
    )


def steps_per_epoch(config: Config, data: Data) -> int:
    """Return the number of batches ``training_batches`` gives."""
    return max(1, len(data.train) // config.batch_size)


def training_batches(
    config: Config, data: Data, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass once over the training set in random order.

    All batches have the same size: the few examples left over are skipped, different ones in
    every epoch, so that no step rests on one or two examples.

    Args:
        config: Settings of batch size and augmentation.
        data: The data set.
        generator: Source of the order and of augmentation, on the data's device.

    Yields:
        Inputs as raw as in ``data.train``, augmented; and their labels.
    """
    train = data.train
    order = torch.randperm(len(train), generator=generator, device=train.labels.device)
    for step in range(steps_per_epoch(config, data)):
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        inputs, labels = train.inputs[rows], train.labels[rows]
        if config.augment:
            inputs = random_crop(inputs, config.crop_padding, generator)
            if config.flip:
                inputs = random_flip(inputs, generator)
        yield inputs, labels


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
