"""The weights that a run tests and keeps."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from training import parallel, tensor_file
from training.evaluation import Evaluation


class Selection:
    """The weights of the best epoch so far, or of the last, in memory and in a file.

    Attributes:
        epoch: Number of the epoch that the weights are of, 0 before the first.
        best: Number of the best epoch so far.
        weights: ``state_dict`` of the model at its end, a copy.
    """

    def __init__(self, path: Path, *, last: bool) -> None:
        """Select nothing yet.

        Args:
            path: File for the weights.
            last: Whether to take every epoch's weights, rather than those of the epoch with the
                best validation accuracy; of equal ones, the lowest validation loss decides.
        """
        self._path = path
        self._last = last
        self._score = (-1.0, 0.0)
        self.epoch = self.best = 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, epoch: int, model: Module, validation: Evaluation) -> None:
        """Keep the weights of ``model``, as they are after ``epoch``, if they are to be kept.

        Raises:
            OSError: The file cannot be written.
        """
        score = (validation.accuracy, -validation.loss)
        if score > self._score:
            self._score, self.best = score, epoch
        if self._last or self.best == epoch:
            self.epoch = epoch
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and where they come from."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "score": list(self._score),
            "weights": self.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned, and write the file again.

        Raises:
            OSError: The file cannot be written.
        """
        self.epoch, self.best = state["epoch"], state["best"]
        self._score = tuple(state["score"])
        self.weights = state["weights"]
        if self.epoch:
            self._write()

    def _write(self) -> None:
        if parallel.is_first():
            tensor_file.write(self._path, self.weights)
