"""Which checkpoints are kept, and when the next is due."""

import time

import pytest
import torch

from training.checkpoint import Checkpoints
from training.config import Config


def names(path) -> set[str]:
    return {file.name for file in (path / "checkpoints").iterdir()}


def save(path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(Config(), path)
    for step in steps:
        checkpoints.save({"step": torch.tensor(step)}, step)
    return checkpoints


def test_the_last_two_are_kept(tmp_path):
    checkpoints = save(tmp_path, 8, 9, 10)
    assert names(tmp_path) == {"step-9.pt", "step-10.pt"}
    assert checkpoints.newest == tmp_path / "checkpoints/step-10.pt"
    assert checkpoints.load() == {"step": torch.tensor(10)}


def test_what_an_earlier_start_wrote_later_goes(tmp_path):
    """After a return to the one before the newest, which was damaged."""
    save(tmp_path, 8, 9)
    checkpoints = save(tmp_path, 8)
    assert names(tmp_path) == {"step-8.pt"}
    checkpoints.clear()
    assert checkpoints.newest is None
    assert checkpoints.load() is None


def test_what_a_killed_process_left_unfinished_goes(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints/.step-2.pt.abc.unfinished").touch()
    save(tmp_path, 2)
    assert names(tmp_path) == {"step-1.pt", "step-2.pt"}


@pytest.mark.parametrize(
    ("every", "passed", "due"), [(60, 59, False), (60, 61, True), (0, 0, True)]
)
def test_when_one_is_due(tmp_path, monkeypatch, every, passed, due):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoints = Checkpoints(Config(checkpoint_every=every), tmp_path)
    now += passed
    assert checkpoints.due == due
    checkpoints.save({}, 1)
    assert checkpoints.due == (every == 0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"schedule": "linear"}, "over which --schedule linear is laid out"),
        ({"schedule": "constant", "warmup": 0.2}, "of which --warmup is a share"),
    ],
)
def test_more_epochs_are_refused_where_the_rate_depends_on_their_number(tmp_path, settings, reason):
    """Else the learning rate would fall back, and rise again."""
    Checkpoints(Config(epochs=2, **settings), tmp_path).save({}, 1)
    with pytest.raises(ValueError, match=f"--epochs 2 there, 3 here, {reason}"):
        Checkpoints(Config(epochs=3, **settings), tmp_path).load()


def test_another_value_of_a_setting_is_named(tmp_path):
    save(tmp_path, 1)
    other = Config(lr=0.5, device="cpu")
    with pytest.raises(ValueError, match=r"other settings \(--lr 0.001 there, 0.5 here\)"):
        Checkpoints(other, tmp_path).load()
