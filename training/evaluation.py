"""Predictions, loss and accuracy of a model on held-out data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from training.data import Split
from training.inputs import Inputs

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a model achieves on a split.

    Attributes:
        loss: Mean cross-entropy.
        accuracy: Fraction of labels predicted.
        logits: ``(N, classes)``, on the device of the split.
        labels: ``(N,)`` int64, the true classes.
    """

    loss: float
    accuracy: float
    logits: Tensor
    labels: Tensor

    @property
    def probabilities(self) -> Tensor:
        """``(N, classes)`` float32 on the CPU."""
        return self.logits.float().softmax(1).cpu()


@torch.no_grad()
def predict(model: Module, inputs: Inputs, raw: Tensor, *, flip: bool = False) -> Tensor:
    """Return the logits of ``model`` in eval mode, and leave it in it.

    Args:
        model: Maps normalised inputs to logits.
        inputs: The inputs it was trained on, for their normalisation.
        raw: ``(N, *inputs.input_shape)`` as in a data set, not normalised.
        flip: Whether to average the logits of an image and its mirror image.

    Returns:
        ``(N, classes)``.
    """
    model.eval()

    def logits(batch: Tensor) -> Tensor:
        normalised = inputs.normalise(batch)
        output: Tensor = model(normalised)
        return (output + model(normalised.flip(-1))) / 2 if flip else output

    return torch.cat([logits(batch) for batch in raw.split(BATCH_SIZE)])


@torch.no_grad()
def evaluate(
    model: Module, criterion: Module, inputs: Inputs, split: Split, *, flip: bool = False
) -> Evaluation:
    """Evaluate ``model`` in eval mode, and leave it in it.

    Args:
        model: Maps normalised inputs to logits.
        criterion: Maps logits and labels to the mean loss of a batch.
        inputs: The inputs it was trained on, for their normalisation.
        split: The examples to evaluate on.
        flip: Whether to average the logits of an image and its mirror image.

    Raises:
        FloatingPointError: The loss is not finite: training has diverged.
    """
    logits = predict(model, inputs, split.inputs, flip=flip)
    loss = criterion(logits, split.labels).item()
    if not math.isfinite(loss):
        raise FloatingPointError(f"training diverged: the held-out loss is {loss}. Lower --lr")
    hits = int((logits.argmax(1) == split.labels).sum())
    return Evaluation(loss, hits / len(split), logits, split.labels)
