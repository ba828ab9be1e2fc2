"""train.py under torchrun: two processes do what one does, and survive the death of one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from training import parallel
from training.cli import parse_args
from training.curves import Curve, read_curves
from training.data import load
from training.setup import LAYERS, build_model

# Not adamw: it makes steps of the rounding of gradients that are zero, as of biases before a norm.
ARGS = (
    "--model", "fashion-cnn", "--batch-norm", "--sync-batch-norm", "--dropout", "0", "--augment",
    "--optimizer", "sgd", "--lr", "0.005", "--batch-size", "64", "--epochs", "3", "--no-report",
    "--cutout", "2", "--mixup", "0.2", "--ema", "0.9", "--clip-norm", "2", "--threads", "1",
)  # fmt: skip


def torchrun(*args: str) -> subprocess.Popen:
    """Start two processes."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *launch, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_close(first: Path, second: Path) -> None:
    """The same curves up to float noise, which every step amplifies."""
    one, two = ({**read_curves(run)} for run in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        if not name.startswith("speed"):
            assert steps(one[name]) == steps(two[name])
            # Float noise can carry a sample of 64 or two over the boundary between classes, and
            # grows: norms of gradients are compared after the first epoch alone.
            atol = 2 / 64 if name.startswith("accuracy") else 1e-6
            compared = slice(1) if name.startswith("norm/gradient") else slice(None)
            curve, other = (values(c[name])[compared] for c in (one, two))
            np.testing.assert_allclose(curve, other, 2e-3, atol, name)
    losses = [values(curves["loss/train"])[:10] for curves in (one, two)]
    np.testing.assert_allclose(*losses, 1e-6)


def steps(curve: Curve) -> list[int]:
    return [step for step, _ in curve]


def values(curve: Curve) -> list[float]:
    return [value for _, value in curve]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("one")
    assert train.main([*ARGS, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_two_processes_train_like_one(one):
    with torchrun(train.__file__, *ARGS, "--run-dir", "two") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert_close(one, Path("two"))
    assert [line[:9] for line in out.splitlines() if line.startswith("epoch")] == [
        "epoch   1", "epoch   2", "epoch   3",
    ]  # fmt: skip
    assert len(list(Path("two").glob("events*"))) == 1
    assert json.loads(Path("two/metrics.json").read_text())["processes"] == 2
    weights = [torch.load(run / "weights.pt", weights_only=True) for run in (one, Path("two"))]
    assert weights[0].keys() == weights[1].keys()


def test_a_killed_process_is_replaced(one):
    args = ("--max-restarts", "1", train.__file__, *ARGS, "--run-dir", "two")
    with torchrun(*args, "--checkpoint-every", "0") as process:
        while not list(Path("two/checkpoints").glob("step-1?.pt")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.kill(workers_of(process)[1], signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resuming two after step" in out
    assert_close(one, Path("two"))


def test_a_restart_of_what_had_not_begun_begins_it(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    args = ["--limit-train", "64", "--epochs", "1", "--no-report", "--run-dir", "run"]
    assert train.main(args) == 0
    assert train.main(args) == 0
    assert capsys.readouterr().out.count("resuming run after step") == 1


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_told_to_stop_it_goes_on_in_one_process(one):
    args = (train.__file__, *ARGS, "--run-dir", "two")
    with torchrun(*args) as process:
        for line in process.stdout:
            if line.startswith("epoch   1"):
                break
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode != 0
    assert err.count("go on with: python train.py --resume two") == 1
    assert train.main(["--resume", "two"]) == 0
    assert_close(one, Path("two"))


class TestMistakes:
    def test_a_batch_that_cannot_be_shared(self, monkeypatch):
        monkeypatch.setattr(parallel, "count", lambda: 3)
        monkeypatch.setattr("training.parallel.dist.barrier", lambda: None)
        with pytest.raises(ValueError, match=r"--batch-size 64 of .* by 3 processes"):
            load(parse_args(["--batch-size", "64"]), torch.device("cpu"))
        with pytest.raises(ValueError, match="of 2 training examples"):
            load(parse_args(["--batch-size", "3", "--limit-train", "2"]), torch.device("cpu"))

    def test_sync_batch_norm_of_torch_on_a_cpu(self):
        config = parse_args(["--sync-batch-norm", "--backend", "torch"])
        data = load(config, torch.device("cpu"))
        with pytest.raises(ValueError, match=r"--sync-batch-norm of torch.nn needs a GPU"):
            build_model(config, data, LAYERS["torch"])

    def test_a_restart_needs_a_folder_to_go_on_in(self, monkeypatch, capsys):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
        assert train.main([]) == 1
        assert "--max-restarts needs a --run-dir" in capsys.readouterr().err


def test_the_error_of_the_first_process_is_raised():
    def fail() -> None:
        raise ValueError("there is no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        parallel.by_first(fail)
    assert parallel.by_first(lambda: 3) == 3
