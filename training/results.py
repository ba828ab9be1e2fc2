"""A trained model together with what is known of its training and its test."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import Module

from training.config import Config
from training.curves import Curve
from training.evaluation import Evaluation
from training.inputs import Inputs

MISTAKES = 20  # most confident errors shown
CONFUSIONS = 10  # most frequent pairs of classes shown


@dataclass(frozen=True)
class Results:
    """All that a report is made of.

    Attributes:
        config: The settings of the run.
        inputs: What the model was trained on.
        model: The model with the weights that were kept.
        raw: ``(N, *inputs.input_shape)``, the evaluated examples as in their data set.
        evaluation: What the model achieves on them.
        evaluated: What they are called, as in ``"test set of mnist"``.
        curves: Metrics over the steps of training.
        metrics: Contents of the run's metrics.json; empty if the run did not get to its end.
    """

    config: Config
    inputs: Inputs
    model: Module
    raw: Tensor
    evaluation: Evaluation
    evaluated: str
    curves: dict[str, Curve]
    metrics: dict[str, Any]

    @property
    def step(self) -> int:
        """Step to log results at: one past the last of training.

        A resumed run drops what it logged after its checkpoint, and so does not log them twice.
        """
        training = self.curves.get("loss/train", [(0, 0.0)])
        return training[-1][0] + 1

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """``(N, classes)``."""
        probabilities: npt.NDArray[np.float32] = self.evaluation.probabilities.numpy()
        return probabilities

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """``(N,)`` predicted classes."""
        predicted: npt.NDArray[np.int64] = self.probabilities.argmax(1)
        return predicted

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """``(N,)`` true classes."""
        labels: npt.NDArray[np.int64] = self.evaluation.labels.cpu().numpy()
        return labels

    @cached_property
    def confusion(self) -> npt.NDArray[np.int64]:
        """``(classes, classes)`` counts; true classes are rows, predicted ones columns."""
        classes = len(self.inputs.classes)
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @cached_property
    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent pairs of true and predicted class that differ, with their counts."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:CONFUSIONS]
        pairs = [np.unravel_index(place, wrong.shape) for place in order]
        classes = self.inputs.classes
        return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    @cached_property
    def mistakes(self) -> list[int]:
        """Row numbers of the wrong predictions with the highest probabilities, highest first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        confidence = self.probabilities[wrong].max(1)
        return [int(row) for row in wrong[np.argsort(-confidence, kind="stable")][:MISTAKES]]


def scores(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return precision, recall, F1 and support as scikit-learn counts them.

    Returns:
        ``classes``, these four for each class by name; ``macro`` and ``weighted``, their averages
        over the classes, each alike or by its support. A ratio of nothing to nothing is 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    labels, predicted = evaluation.labels.cpu(), evaluation.logits.argmax(1).cpu()

    def rows(average: str | None) -> list[dict[str, float]]:
        columns = precision_recall_fscore_support(
            labels, predicted, labels=range(len(classes)), average=average, zero_division=0
        )
        precision, recall, f1, support = map(np.atleast_1d, columns)
        if average is not None:
            support = np.array([len(labels)])  # scikit-learn has none for averages
        return [
            {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for p, r, f, n in zip(precision, recall, f1, support, strict=True)
        ]

    return {
        "classes": dict(zip(classes, rows(None), strict=True)),
        "macro": rows("macro")[0],
        "weighted": rows("weighted")[0],
    }
