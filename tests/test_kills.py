"""Training is killed again and again, and ends as if it had not been."""

import os
import random
import signal
import time
from pathlib import Path

import train
from tests.runs import SMALL, assert_equal_events, assert_equal_runs
from tests.starter import Starter

KILLS = 20
# 24 epochs of 10 steps, some milliseconds each, with a checkpoint after each.
ARGS = (*SMALL, "--epochs", "24", "--limit-train", "160", "--batch-size", "16", "--dropout", "0.2",
        "--augment", "--threads", "1", "--checkpoint-every", "0")  # fmt: skip


def checkpoints() -> set[str]:
    folder = Path("parts/checkpoints")
    return {path.name for path in folder.glob("step-*.pt")} if folder.exists() else set()


def let_it_run(process: int, moments: random.Random) -> None:
    """Wait for a random moment of a run: while it starts, or some steps later."""
    steps = moments.randrange(6)
    for _ in range(steps):
        before = checkpoints()
        while checkpoints() == before:
            os.kill(process, 0)  # raises if it has ended
            time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.02 if steps else 0.5))


def test_twenty_kills_at_random_moments(tmp_path, monkeypatch):
    """By SIGKILL, while it starts, trains, validates and writes."""
    monkeypatch.chdir(tmp_path)
    assert train.main([*ARGS, "--checkpoint-every", "1e9", "--run-dir", "whole"]) == 0
    moments = random.Random(0)
    with Starter() as starter:

        def start() -> int:
            begun = Path("parts/config.yaml").exists()
            return starter.start(
                *(["--resume", "parts"] if begun else [*ARGS, "--run-dir", "parts"])
            )

        for _ in range(KILLS):
            process = start()
            let_it_run(process, moments)
            os.kill(process, signal.SIGKILL)
            assert starter.wait() == -signal.SIGKILL, Path("output").read_text()
        start()
        assert starter.wait() == 0, Path("output").read_text()
    output = Path("output").read_text()
    assert "Traceback" not in output
    assert "warning" not in output  # no checkpoint was found damaged
    assert_equal_runs("whole", "parts")
    assert_equal_events("whole", "parts")
    assert not list(Path("parts").glob("**/.*"))
