"""Ten thousand steps, at the end of which nothing has piled up."""

import gc
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typing_extensions import override

from manual_ops import nn
from training.checkpoint import Checkpoints
from training.clock import Stopwatch
from training.config import Config
from training.curves import CurveLogger
from training.data import load
from training.log import Logger, Loggers, TensorBoardLogger
from training.loop import train
from training.state import initial_state
from training.step_metrics import LOG_EVERY

STEPS, SETTLED, LOOKED_AT = 10_000, 2_000, 1_000


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    resident: int
    tensors: int
    files: int

    @classmethod
    def now(cls) -> "Usage":
        gc.collect()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), tensors, len(os.listdir("/proc/self/fd")))


class Watch(Logger):
    """Notes every so many steps what the process holds."""

    def __init__(self) -> None:
        self.seen: dict[int, Usage] = {}

    @override
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if step % LOOKED_AT == 0 and step not in self.seen:
            self.seen[step] = Usage.now()


def model() -> nn.Sequential:
    """A layer each that keeps statistics, indices, a mask and nothing."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(18, 10),
    )


def trained(folder: Path) -> dict[int, Usage]:
    """Return what the process held every so many steps of training."""
    config = Config(
        epochs=STEPS // 100, batch_size=2, limit_train=200, validation=0.02, threads=1,
        optimizer="sgd", lr=1e-4, checkpoint_every=1,
    )  # fmt: skip
    data = load(config, torch.device("cpu"))
    state = initial_state(config, data, model(), folder / "weights.pt", Stopwatch())
    watch = Watch()
    logger = Loggers(CurveLogger(folder), TensorBoardLogger(folder), watch)
    assert train(config, data, nn, state, logger, Checkpoints(config, folder)) == 0
    logger.close()
    assert state.progress.step == STEPS
    return watch.seen


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_nothing_grows(tmp_path: Path) -> None:
    """Neither memory, nor tensors, nor open files, over the last 8,000 of 10,000 steps."""
    # In a process of its own: what other tests have freed changes what the allocator gives back.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        seen = pool.submit(trained, tmp_path).result()
    assert list(seen) == list(range(LOOKED_AT, STEPS + 1, LOOKED_AT))
    settled = seen[SETTLED]
    for step, usage in seen.items():
        if step > SETTLED:
            # TensorBoard's thread may have its file open, or not.
            assert usage.files <= settled.files + 1, seen
            # Metrics of the steps since a checkpoint, which comes by the clock, are pending.
            assert usage.tensors <= settled.tensors + LOG_EVERY, seen
            # A tensor of one number kept from each step would take 4 MiB.
            assert usage.resident - settled.resident < 2 * 2**20, seen
