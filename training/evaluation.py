"""Loss and accuracy of a model on held-out data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from training.data import Data, Split

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model achieves on a split.

    Attributes:
        loss: Mean cross-entropy.
        accuracy: Fraction of labels predicted.
        per_class: For each class, the fraction of its examples predicted; None without examples.
    """

    loss: float
    accuracy: float
    per_class: tuple[float | None, ...]


@torch.no_grad()
def evaluate(model: Module, criterion: Module, data: Data, split: Split) -> Evaluation:
    """Evaluate ``model`` in eval mode, and leave it in it.

    Args:
        model: Maps normalised inputs to logits.
        criterion: Maps logits and labels to the mean loss of a batch.
        data: The data set, for its normalisation and classes.
        split: The part of it to evaluate on.

    Raises:
        FloatingPointError: The loss is not finite: training has diverged.
    """
    model.eval()
    classes = len(data.classes)
    total_loss = torch.zeros((), device=split.labels.device)
    predictions: list[Tensor] = []
    for inputs, labels in zip(
        split.inputs.split(BATCH_SIZE), split.labels.split(BATCH_SIZE), strict=True
    ):
        logits = model(data.normalise(inputs))
        total_loss += criterion(logits, labels) * len(labels)
        predictions.append(logits.argmax(1))
    loss = total_loss.item() / len(split)
    if not math.isfinite(loss):
        raise FloatingPointError(f"training diverged: the held-out loss is {loss}. Lower --lr")
    hits = split.labels[torch.cat(predictions) == split.labels]
    correct = torch.bincount(hits, minlength=classes)
    count = torch.bincount(split.labels, minlength=classes)
    return Evaluation(
        loss=loss,
        accuracy=len(hits) / len(split),
        per_class=tuple(
            hits_ / total if total else None
            for hits_, total in zip(correct.tolist(), count.tolist(), strict=True)
        ),
    )
