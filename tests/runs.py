"""Runs of the training program: started, stopped, and compared to the last bit."""

import json
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.curves import read_curves

# Two epochs of 20 steps, some milliseconds each.
SMALL = ("--model", "mlp", "--hidden", "16", "--batch-size", "64", "--epochs", "2", "--no-report")


def result(run_dir: str) -> dict[str, object]:
    """What a run leaves that does not depend on the speed of the machine."""
    metrics = json.loads(Path(run_dir, "metrics.json").read_text())
    for epoch in [metrics, *metrics["history"]]:
        for name in (
            "finished",
            "peak_memory_bytes",
            "seconds",
            "images_per_second",
            "speed/images_per_second",
        ):
            epoch.pop(name, None)
    curves = read_curves(Path(run_dir))
    curves.pop("speed/images_per_second")
    return {"metrics": metrics, "curves": curves}


def tensors(state: object, name: str = "") -> dict[str, object]:
    """The leaves of nested containers by their path."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {name: state}
    return {
        key: leaf for part, value in items for key, leaf in tensors(value, f"{name}/{part}").items()
    }


def newest(run_dir: str) -> Path:
    return max(Path(run_dir, "checkpoints").iterdir(), key=lambda path: int(path.stem[5:]))


def assert_equal_runs(first: str, second: str) -> None:
    """To the last bit: weights, optimizer, generators, history, curves, test result."""
    assert result(first) == result(second)
    for path in ("weights.pt", newest(first).relative_to(first)):
        one, two = (
            tensors(torch.load(Path(run, path), weights_only=True)) for run in (first, second)
        )
        assert one.keys() == two.keys()
        for name in one:
            if "clock" in name or name.endswith(("second", "run_dir", "resume", "every")):
                continue
            if isinstance(one[name], torch.Tensor):
                assert torch.equal(one[name], two[name]), name
            else:
                assert one[name] == two[name], name


def assert_equal_events(first: str, second: str) -> None:
    """TensorBoard shows the same values at the same steps, none of them twice."""
    events = [EventAccumulator(run).Reload() for run in (first, second)]
    tags = events[0].Tags()["scalars"]
    assert tags == events[1].Tags()["scalars"]
    for tag in tags:
        if not tag.startswith("speed"):
            one, two = ([(e.step, e.value) for e in each.Scalars(tag)] for each in events)
            assert one == two, tag


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the program Ctrl-C in training step ``step``, counted from the start of the process."""
    taken = 0
    take = torch.optim.Optimizer.zero_grad

    def spy(self, *args):
        nonlocal taken
        taken += 1
        if taken == step:
            signal.raise_signal(signal.SIGINT)
        take(self, *args)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", spy)
