"""Sweeps: what they try, that they can be interrupted and shared, and what they report."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

import sweep
import train
from training import study

MOONS = [
    "--dataset",
    "moons",
    "--epochs",
    "2",
    "--no-tensorboard",
    "--no-report",
    "--sweep-dir",
    "out",
]
GRID = [*MOONS, "--lr", "0.003", "0.03", "--seeds", "2"]
ROOT = Path(sweep.__file__).parent


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def metrics() -> dict[tuple[str, str], dict[str, Any]]:
    """The results of all runs by setting and seed."""
    return {
        (path.parts[1], path.parts[2]): json.loads(path.read_text())
        for path in Path("out").glob("*/*/metrics.json")
    }


def test_grid_of_settings_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*GRID, "--activation", "relu", "tanh"]) == 0
    runs = metrics()
    settings = {f"lr={lr},activation={a}" for lr in ("0.003", "0.03") for a in ("relu", "tanh")}
    assert runs.keys() == {(s, seed) for s in settings for seed in ("seed=0", "seed=1")}
    with Path("out/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        name = f"lr={row['lr']},activation={row['activation']}"
        for metric, deviation in (("test_accuracy", "test_std"), ("validation_accuracy", None)):
            values = [runs[name, f"seed={seed}"][metric] for seed in (0, 1)]
            assert float(row[metric]) == pytest.approx(fmean(values))
            assert float(row[deviation or "validation_std"]) == pytest.approx(stdev(values))
    order = [float(row["validation_accuracy"]) for row in rows]
    assert order == sorted(order, reverse=True)
    assert Path("out/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "over 2 seeds" in capsys.readouterr().out


def test_seeds_and_settings_reach_the_runs() -> None:
    sweep.main(GRID)
    losses = {run["history"][0]["loss/train_epoch"] for run in metrics().values()}
    assert len(losses) == 4


def test_finished_sweep_trains_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.main(GRID)
    monkeypatch.setattr(train, "run", lambda args: pytest.fail("trained again"))
    assert sweep.main(GRID) == 0


def test_stopped_sweep_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train.run
    calls = 0

    def stop_at_third(args: Sequence[str]) -> int:
        nonlocal calls
        calls += 1
        return run(args) if calls != 3 else 130

    monkeypatch.setattr(train, "run", stop_at_third)
    assert sweep.main(GRID) == 130
    assert len(metrics()) == 2
    assert sweep.main(GRID) == 0
    assert len(metrics()) == 4
    assert calls == 5  # none of the finished runs again


def test_work_of_a_killed_process_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "sweep.py", *GRID, "--epochs", "2000"]
    long = [*GRID, "--epochs", "2000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(Path("out").glob("*/*/config.yaml")) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    seen: list[str] = []

    def pretend(args: Sequence[str]) -> int:
        (flag,) = {"--resume", "--run-dir"}.intersection(args)
        directory = Path(args[list(args).index(flag) + 1])
        directory.mkdir(parents=True, exist_ok=True)
        result = {"validation_accuracy": 0.5, "test_accuracy": 0.5, "seconds": 1.0}
        curve = [{"loss/validation": 1.0, "accuracy/validation": 0.5}]
        (directory / "metrics.json").write_text(json.dumps(result | {"history": curve}))
        seen.append(str(directory))
        return 0

    monkeypatch.setattr(train, "run", pretend)
    assert sweep.main(long) == 0
    assert len(seen) == len(set(seen)) == 4


def test_tpe_draws_from_a_range() -> None:
    arguments = ["--sampler", "tpe", "--trials", "3", "--lr", "1e-3:1e-1", "--hidden", "8", "8"]
    assert sweep.main([*MOONS, *arguments]) == 0
    rates = {float(setting.removeprefix("lr=")) for setting, _ in metrics()}
    assert len(rates) == 3
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)


def test_setting_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train.run
    monkeypatch.setattr(train, "run", lambda args: 1 if "0.03" in args else run(args))
    assert sweep.main(GRID) == 0
    assert {setting for setting, _ in metrics()} == {"lr=0.003"}
    assert len(Path("out/sweep.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0.1"], "nothing is swept"),
        (["--lrr", "1", "2"], "train.py has no flag --lrr"),
        (["0.1", "--lr", "0.1", "0.2"], "expected a flag before '0.1'"),
        (["--lr", "1:0.1", "--sampler", "tpe", "--trials", "2"], "low < high"),
        (["--lr", "0.1:a", "--sampler", "tpe", "--trials", "2"], "a range is two numbers"),
        (["--lr", "0.1:1"], "needs --sampler tpe"),
        (["--lr", "0.1", "1", "--sampler", "tpe"], "--trials N"),
        (["--seed", "0", "1"], "chooses --seed itself"),
        (["--lr", "0.1", "1", "--seeds", "0"], "--seeds must be at least 1"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_value_that_train_refuses() -> None:
    with pytest.raises(SystemExit, match="2"):
        sweep.main([*MOONS, "--optimizer", "sgd", "foo"])


def test_other_sweep_in_the_same_folder(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(GRID)
    assert sweep.main([*MOONS, "--lr", "0.1", "0.2"]) == 1
    assert "lr over 0.003 0.03, not lr over 0.1 0.2" in capsys.readouterr().err


def test_damage_is_named_and_made_up_for(capsys: pytest.CaptureFixture[str]) -> None:
    args = [*MOONS, "--epochs", "1", "--lr", "0.003", "0.03"]
    assert sweep.main(args) == 0
    before = metrics()
    damaged = Path("out/lr=0.03/seed=0/metrics.json")
    damaged.write_bytes(damaged.read_bytes()[:100])
    capsys.readouterr()
    assert sweep.main(args) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {damaged} is damaged (")
    assert f"python train.py --resume {damaged.parent}" in message

    database = Path("out/study.db")
    database.write_bytes(database.read_bytes()[:3000])
    assert sweep.main(args) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: the database sqlite:///out/study.db cannot be used: ")
    assert message.count("\n") == 1
    database.unlink()
    assert sweep.main(args) == 0  # the whole run is taken as it is, the other reports again
    after = metrics()
    assert after.keys() == before.keys()
    for run, found in after.items():
        assert found["test_loss"] == before[run]["test_loss"]
