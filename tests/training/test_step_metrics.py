"""The collection of per-step metrics."""

import pytest
import torch
from torch import nn

from tests.training.recorder import Recorder
from training.log import Logger
from training.step_metrics import LOG_EVERY, StepMetrics

NAN, INFINITY = float("nan"), float("inf")


def model() -> nn.Module:
    """Three layers, of which the last is frozen; all gradients are 1."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return model


def add(metrics: StepMetrics, step: int, loss: float) -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    metrics.add(step, 0.1 * step, torch.tensor(loss), logits, torch.tensor([0, 1, 1, 0]))


def test_steps_are_logged_together_when_flushed():
    recorder = Recorder()
    metrics = StepMetrics(model())
    add(metrics, 1, 0.5)
    add(metrics, 2, 0.25)
    assert recorder.metrics == []
    metrics.flush(recorder)
    assert recorder.metrics == [
        (1, {"loss/train": 0.5, "accuracy/train": 0.75, "schedule/learning_rate": 0.1}),
        (2, {"loss/train": 0.25, "accuracy/train": 0.75, "schedule/learning_rate": 0.2}),
    ]
    metrics.flush(recorder)
    assert len(recorder.metrics) == 2


def test_mixed_labels_count_by_their_larger_share():
    recorder = Recorder()
    metrics = StepMetrics(model())
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    metrics.add(1, 0.1, torch.tensor(0.5), logits, torch.tensor([[0.6, 0.4], [0.3, 0.7]]))
    metrics.flush(recorder)
    assert recorder.metrics[0][1]["accuracy/train"] == 0.5


def test_gradient_norms_are_those_of_whole_layers():
    recorder = Recorder()
    metrics = StepMetrics(model())
    add(metrics, LOG_EVERY, 0.5)
    metrics.flush(recorder)
    ((_, logged),) = recorder.metrics
    norms = {name: value for name, value in logged.items() if name.startswith("norm")}
    assert norms == {
        "norm/gradient/0": pytest.approx((3 * 4 + 4) ** 0.5),
        "norm/gradient/2": pytest.approx((4 + 4) ** 0.5),
    }


def test_epoch_means_cover_flushed_and_pending_steps_once():
    metrics = StepMetrics(model())
    add(metrics, 1, 0.5)
    metrics.flush(Logger())
    add(metrics, 2, 0.25)
    assert metrics.epoch_means(Logger()) == (0.375, 0.75)
    add(metrics, 3, 1.0)
    assert metrics.epoch_means(Logger()) == (1.0, 0.75)


def test_epoch_means_survive_a_resume():
    metrics, resumed = StepMetrics(model()), StepMetrics(model())
    add(metrics, 1, 0.5)
    metrics.flush(Logger())
    resumed.load_state_dict(metrics.state_dict())
    add(resumed, 2, 0.25)
    assert resumed.epoch_means(Logger()) == (0.375, 0.75)


@pytest.mark.parametrize("loss", [NAN, INFINITY])
def test_a_loss_that_is_not_finite_stops_the_run(loss):
    metrics = StepMetrics(model())
    add(metrics, 1, 0.5)
    add(metrics, 2, loss)
    add(metrics, 3, NAN)
    with pytest.raises(FloatingPointError, match=rf"in step 2: its loss is {loss}\. Lower --lr"):
        metrics.flush(Logger())


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(("bad", "named"), [([0], "0"), ([2], "2"), ([0, 2], "2")])
def test_the_layer_whose_gradient_went_bad_first_is_named(bad, named, value):
    """Backward passes run from the last layer to the first."""
    watched = model()
    metrics = StepMetrics(watched)
    add(metrics, 1, 0.5)
    for layer in bad:
        watched[layer].bias.grad[1] = value
    add(metrics, 2, 0.25)
    for layer in (0, 2):
        watched[layer].weight.grad.fill_(NAN)
    add(metrics, 3, NAN)
    message = f"in step 2: its loss is 0.25, and the first gradient to go bad was that of {named}"
    with pytest.raises(FloatingPointError, match=message):
        metrics.flush(Logger())
