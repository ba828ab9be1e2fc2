"""Which weights are kept."""

import pytest
import torch
from torch import nn

from training.evaluation import Evaluation
from training.selection import Selection


def offer(selection: Selection, epoch: int, accuracy: float, loss: float = 1.0) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, epoch)
    selection.offer(epoch, model, Evaluation(loss, accuracy, torch.empty(0), torch.empty(0)))


@pytest.mark.parametrize(("last", "kept"), [(False, 2), (True, 3)])
def test_the_best_or_the_last(last, kept, tmp_path):
    selection = Selection(tmp_path / "weights.pt", last=last)
    for epoch, accuracy in enumerate((0.5, 0.75, 0.25), start=1):
        offer(selection, epoch, accuracy)
    assert selection.epoch == kept
    assert selection.weights["weight"].item() == kept
    assert torch.load(tmp_path / "weights.pt", weights_only=True)["weight"].item() == kept


def test_of_equal_ones_that_with_the_lower_loss(tmp_path):
    selection = Selection(tmp_path / "weights.pt", last=False)
    for epoch, loss in enumerate((1.0, 0.5, 0.5, 2.0), start=1):
        offer(selection, epoch, 0.5, loss)
    assert selection.epoch == 2


def test_a_resume_takes_back_later_weights(tmp_path):
    """A run killed after an epoch whose weights were better, but are not in its checkpoint."""
    selection = Selection(tmp_path / "weights.pt", last=False)
    offer(selection, 1, 0.5)
    state = selection.state_dict()
    offer(selection, 2, 0.75)
    resumed = Selection(tmp_path / "weights.pt", last=False)
    resumed.load_state_dict(state)
    assert torch.load(tmp_path / "weights.pt", weights_only=True)["weight"].item() == 1
    offer(resumed, 2, 0.25)
    assert resumed.epoch == 1
