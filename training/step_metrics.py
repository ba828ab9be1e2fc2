"""What a training step yields to look at, gathered until it is worth reading."""

import math
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from training import parallel
from training.log import Logger

LOG_EVERY = 20  # steps between two transfers of metrics from the device


class StepMetrics:
    """Loss, accuracy and gradient norms of every step, kept on the device for a while.

    Reading a number off a GPU makes the program wait for it; doing so once in ``LOG_EVERY``
    steps costs nothing.
    """

    def __init__(self, model: Module) -> None:
        """Watch the gradients of ``model``, layer by layer."""
        self._parameters = {
            f"{name}.{key}": parameter
            for name, layer in model.named_modules()
            for key, parameter in layer.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        self._pending: list[tuple[int, float, Tensor]] = []
        self._epoch: list[tuple[float, float]] = []

    def add(
        self, step: int, learning_rate: float, loss: Tensor, logits: Tensor, labels: Tensor
    ) -> None:
        """Note a training step, after its backward pass.

        Args:
            step: Number of the step, from 1.
            learning_rate: That of the step.
            loss: Classification loss, a scalar.
            logits: ``(N, classes)``.
            labels: ``(N,)`` class indices, or ``(N, classes)`` probabilities.
        """
        if labels.ndim == 2:
            labels = labels.argmax(1)
        accuracy = (logits.argmax(1) == labels).float().mean()
        gradients = [parameter.grad for parameter in self._parameters.values()]
        # torch.nn.utils computes norms in this way too; one by one, a GPU would be kept waiting.
        norms = torch._foreach_norm(gradients)
        values = torch.stack([loss.detach(), accuracy, *norms]).float()
        self._pending.append((step, learning_rate, values))

    def flush(self, logger: Logger) -> None:
        """Log the pending steps: means over the processes, which have to do this together.

        Raises:
            FloatingPointError: A loss or gradient is not finite: training has diverged.
        """
        if not self._pending:
            return
        values = parallel.mean(torch.stack([value for _, _, value in self._pending])).tolist()
        for (step, rate, _), (loss, accuracy, *norms) in zip(self._pending, values, strict=True):
            gradients = self._by_layer(norms)
            if not math.isfinite(loss + sum(norms)):
                raise FloatingPointError(_diverged(step, loss, gradients))
            metrics = {
                "loss/train": loss,
                "accuracy/train": accuracy,
                "schedule/learning_rate": rate,
            }
            if step % LOG_EVERY == 0:
                metrics |= {f"norm/gradient/{layer}": norm for layer, norm in gradients.items()}
            logger.log(metrics, step)
            self._epoch.append((loss, accuracy))
        self._pending.clear()

    def epoch_means(self, logger: Logger) -> tuple[float, float]:
        """Log the pending steps; return mean loss and accuracy since the last call."""
        self.flush(logger)
        losses, accuracies = zip(*self._epoch, strict=True)
        self._epoch.clear()
        return fmean(losses), fmean(accuracies)

    def state_dict(self) -> dict[str, Any]:
        """Return loss and accuracy of the epoch's steps; pending ones have to be flushed."""
        assert not self._pending
        return {"epoch": [list(values) for values in self._epoch]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        self._epoch = [(loss, accuracy) for loss, accuracy in state["epoch"]]

    def _by_layer(self, norms: list[float]) -> dict[str, float]:
        """Return the norm of each layer's gradient from those of its parameters."""
        layers: dict[str, float] = {}
        for name, norm in zip(self._parameters, norms, strict=True):
            layer = name.rpartition(".")[0]
            layers[layer] = math.hypot(layers.get(layer, 0.0), norm)
        return layers


def _diverged(step: int, loss: float, gradients: dict[str, float]) -> str:
    """Say what is not finite; backward starts at the last layer, so that is the first to fail."""
    bad = [layer for layer, norm in gradients.items() if not math.isfinite(norm)]
    gradient = f", and the first gradient to go bad was that of {bad[-1]}" if bad else ""
    return f"training diverged in step {step}: its loss is {loss}{gradient}. Lower --lr"
