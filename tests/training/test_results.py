"""What a report is made of."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

from tests.training.examples import evaluation, results
from training.results import MISTAKES, scores


@pytest.fixture
def labels_and_predictions():
    found = results(classes=4, examples=200)
    return found, found.evaluation.labels.numpy(), found.evaluation.logits.argmax(1).numpy()


def test_scores_are_those_of_scikit_learn(labels_and_predictions):
    found, labels, predicted = labels_and_predictions
    classes = found.inputs.classes
    report = sklearn.metrics.classification_report(
        labels, predicted, target_names=classes, output_dict=True
    )
    ours = scores(found.evaluation, classes)
    assert list(ours["classes"]) == list(classes)
    rows = ours["classes"] | {"macro avg": ours["macro"], "weighted avg": ours["weighted"]}
    for name, row in rows.items():
        expected = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert list(row.values()) == pytest.approx(expected)
        assert 0 < row["f1"] < 1  # the examples are neither all right nor all wrong


def test_a_class_without_examples_or_predictions_has_no_score():
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    found = scores(evaluation(logits, torch.tensor([0, 1])), ("a", "b", "c"))
    assert found["classes"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert found["classes"]["a"] == pytest.approx(
        {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
    )
    assert found["macro"]["recall"] == pytest.approx(1 / 3)


def test_confusion(labels_and_predictions):
    found, labels, predicted = labels_and_predictions
    assert found.confusion.shape == (4, 4)
    for i, j in np.ndindex(4, 4):
        assert found.confusion[i, j] == ((labels == i) & (predicted == j)).sum()
    (true, wrong, count), *rest = found.confusions
    assert true != wrong
    assert count == (found.confusion - np.diag(np.diag(found.confusion))).max()
    assert [row[2] for row in rest] == sorted((row[2] for row in rest), reverse=True)
    assert all(row[2] > 0 for row in rest)


def test_mistakes_are_wrong_and_the_most_confident_first(labels_and_predictions):
    found, labels, predicted = labels_and_predictions
    rows = found.mistakes
    assert len(rows) == MISTAKES
    assert (predicted[rows] != labels[rows]).all()
    confidence = found.probabilities.max(1)
    assert confidence[rows].tolist() == sorted(confidence[rows].tolist(), reverse=True)
    others = set(np.flatnonzero(predicted != labels)) - set(rows)
    assert confidence[list(others)].max() <= confidence[rows[-1]]


def test_a_model_that_is_always_right_has_no_mistakes():
    labels = torch.arange(6) % 3
    found = results()
    perfect = type(found)(
        **{**vars(found), "evaluation": evaluation(9.0 * nn.functional.one_hot(labels, 3), labels)}
    )
    assert perfect.mistakes == []
    assert perfect.confusions == []
    assert perfect.confusion.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]


def test_results_are_logged_past_the_last_step():
    assert results().step == 41
