"""metrics.json and what is printed."""

import json

import pytest
import torch
from torch import nn

from tests.training.examples import data
from training import report
from training.evaluation import Evaluation
from training.recipes import recipe


class TestMetrics:
    @pytest.fixture
    def metrics(self):
        history = [
            {"schedule/epoch": 1, "accuracy/validation": 0.5, "speed/images_per_second": 10.0},
            {"schedule/epoch": 2, "accuracy/validation": 0.75, "speed/images_per_second": 30.0},
        ]
        labels = torch.tensor([0] * 3 + [1] * 4)
        predicted = torch.tensor([0, 0, 0, 1, 0, 0, 0])
        test = Evaluation(0.125, 0.625, 9.0 * nn.functional.one_hot(predicted, 3), labels)
        model = nn.Linear(16, 3)
        return report.metrics(recipe("digits"), data(), model, history, 2, test, 12.5)

    def test_contents(self, metrics):
        expected = {
            "test_accuracy": 0.625,
            "test_loss": 0.125,
            "per_class_accuracy": {"cat": 1.0, "dog": 0.25, "cow": None},
            "validation_accuracy": 0.75,
            "selected_epoch": 2,
            "parameters": 16 * 3 + 3,
            "epochs": recipe("digits").epochs,
            "seconds": 12.5,
            "images_per_second": 20.0,
            "mean": [100.0],
            "std": [50.0],
        }
        assert metrics.items() >= expected.items()

    def test_written_and_read_back(self, metrics, tmp_path):
        report.write(tmp_path, metrics)
        assert json.loads((tmp_path / "metrics.json").read_text()) == metrics

    def test_summary(self, metrics):
        assert report.summary(metrics).splitlines() == [
            "",
            "cat        100.00%",
            "dog         25.00%",
            "cow       no examples",
            "test set    62.50%  loss 0.1250  (weights of epoch 2)",
            "12.5 s, 20 images/s",
        ]
