"""Sweeps: what they try, that they can be interrupted and shared, and what they report."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

import sweep
import train
from training import study, sweep_report

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


def pretend_to_train(
    monkeypatch: pytest.MonkeyPatch, outcome: Callable[[str], int] = lambda run: 0
) -> list[str]:
    """Let runs leave results at once; return the list of their folders, which grows.

    Args:
        monkeypatch: Takes the place of training.
        outcome: Returns the exit code of the run in a folder, or raises; without results if not 0.
    """
    seen: list[str] = []

    def run(args: Sequence[str]) -> int:
        (flag,) = {"--resume", "--run-dir"}.intersection(args)
        directory = Path(args[list(args).index(flag) + 1])
        seen.append(str(directory))
        if code := outcome(str(directory)):
            return code
        directory.mkdir(parents=True, exist_ok=True)
        result = {"validation_accuracy": 0.5, "test_accuracy": 0.5, "seconds": 1.0}
        curve = [{"loss/validation": 1.0, "accuracy/validation": 0.5}] * len(seen)
        (directory / "metrics.json").write_text(json.dumps(result | {"history": curve}))
        return 0

    monkeypatch.setattr(train, "run", run)
    return seen


def rows() -> list[dict[str, str]]:
    """The lines of sweep.csv."""
    with Path("out/sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_grid_of_settings_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*GRID, "--activation", "relu", "tanh"]) == 0
    runs = metrics()
    settings = {f"lr={lr},activation={a}" for lr in ("0.003", "0.03") for a in ("relu", "tanh")}
    assert runs.keys() == {(s, seed) for s in settings for seed in ("seed=0", "seed=1")}
    table = rows()
    assert len(table) == 4
    for row in table:
        name = f"lr={row['lr']},activation={row['activation']}"
        for metric, deviation in (("test_accuracy", "test_std"), ("validation_accuracy", None)):
            values = [runs[name, f"seed={seed}"][metric] for seed in (0, 1)]
            assert float(row[metric]) == pytest.approx(fmean(values))
            assert float(row[deviation or "validation_std"]) == pytest.approx(stdev(values))
    order = [float(row["validation_accuracy"]) for row in table]
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


def test_one_seed_has_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    at = GRID.index("--seeds")
    assert sweep.main([*GRID[:at], *GRID[at + 2 :]]) == 0
    assert {row["test_std"] for row in rows()} == {""}
    out = capsys.readouterr().out
    assert "one seed, best first" in out
    assert "±" not in out


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


@pytest.mark.parametrize("place", ["training.data.read", "training.html_report.write"])
def test_sweep_interrupted_outside_of_training_continues(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = [*MOONS, "--lr", "0.003", "0.03"]
    arguments.remove("--no-report")
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt)
        assert sweep.main(arguments) == 130
    printed = capsys.readouterr()
    assert "the sweep in out continues by the same command" in printed.out
    assert printed.err == ""
    assert sweep.main(arguments) == 0
    assert len(rows()) == len(list(Path("out").glob("*/*/report.html"))) == 2


def test_interrupted_between_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    seen = pretend_to_train(monkeypatch)
    for place in ("training.study.is_free", "sweep.report", "sweep.Study"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            assert sweep.main(GRID) == 130
        printed = capsys.readouterr()
        assert "the same command" in printed.out + printed.err
    assert sweep.main(GRID) == 0
    assert len(seen) == len(set(seen)) == 4


def test_stopped_run_leaves_only_our_messages() -> None:
    script = f"import sweep, train; train.run = lambda _: 130; raise SystemExit(sweep.main({GRID}))"
    stopped = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == 130
    assert stopped.stderr == ""


def test_processes_may_begin_at_once() -> None:
    script = (
        "import json, pathlib, sys, sweep, train\n"
        "def run(args):\n"
        "    directory = pathlib.Path(args[-1])\n"
        "    directory.mkdir(parents=True)\n"
        "    result = dict(validation_accuracy=0.5, test_accuracy=0.5, seconds=1.0)\n"
        "    curve = [{'loss/validation': 1.0, 'accuracy/validation': 0.5}]\n"
        "    (directory / 'metrics.json').write_text(json.dumps(result | {'history': curve}))\n"
        "    return 0\n"
        "train.run = run\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"raise SystemExit(sweep.main({GRID}))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    assert len(rows()) == 2


def test_work_of_a_killed_process_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    long = list(GRID)
    long[long.index("--epochs") + 1] = "2000"
    command = [sys.executable, ROOT / "sweep.py", *long]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(Path("out").glob("*/*/config.yaml")) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    seen = pretend_to_train(monkeypatch)
    assert sweep.main(long) == 0
    assert len(seen) == len(set(seen)) == 4


def test_tpe_draws_from_a_range() -> None:
    arguments = ["--sampler", "tpe", "--trials", "3", "--lr", "1e-3:1e-1", "--hidden", "8", "8"]
    assert sweep.main([*MOONS, *arguments]) == 0
    rates = {float(setting.removeprefix("lr=")) for setting, _ in metrics()}
    assert len(rates) == 3
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)


def test_tpe_lists_a_setting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = pretend_to_train(monkeypatch)
    tpe = [*MOONS, "--sampler", "tpe", "--trials", "5", "--optimizer", "sgd", "adamw"]
    assert sweep.main(tpe) == 0
    assert len(rows()) == len(seen) == len(set(seen)) <= 2


def test_setting_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pretend_to_train(monkeypatch, lambda run: int("0.03" in run))
    assert sweep.main(GRID) == 1
    assert [(row["lr"], row["outcome"]) for row in rows()] == [
        ("0.003", "finished"),
        ("0.03", "failed"),
    ]
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-2].split() == ["0.03", "failed"]
    assert printed.err == (
        "error: 1 of 2 settings failed; "
        "mend the cause, and the same command tries 1 of them again\n"
    )
    assert len(seen) == 3  # none with the second seed
    seen = pretend_to_train(monkeypatch)
    assert sweep.main(GRID) == 0
    assert seen == ["out/lr=0.03/seed=0", "out/lr=0.03/seed=1"]
    assert [row["outcome"] for row in rows()] == ["finished", "finished"]


def test_setting_that_diverges_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*MOONS, "--optimizer", "sgd", "--lr", "0.01", "1e30"]
    assert sweep.main(arguments) == 1
    seen = pretend_to_train(monkeypatch)
    assert sweep.main(arguments) == 1
    assert [(row["lr"], row["outcome"]) for row in rows()] == [
        ("0.01", "finished"),
        ("1e+30", "diverged"),
    ]
    assert capsys.readouterr().err.endswith("error: 1 of 2 settings failed\n")
    assert seen == []


def test_tpe_tries_again_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    tpe = [*MOONS, "--sampler", "tpe", "--trials", "3", "--lr", "1e-3:1e-1"]
    failed = pretend_to_train(monkeypatch, lambda run: 1)
    assert sweep.main(tpe) == 1
    assert len(failed) == len(rows()) == 3
    assert not Path("out/sweep.png").exists()
    seen = pretend_to_train(monkeypatch)
    assert sweep.main(tpe) == 0
    assert sorted(seen) == sorted(failed)


def test_runs_of_different_length(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_train(monkeypatch)  # each an epoch longer than the one before
    assert sweep.main(GRID) == 0
    assert Path("out/sweep.png").exists()


def test_mean_and_deviation_are_over_the_runs_that_came_so_far() -> None:
    mean, spread = sweep_report._band([[1.0, 2.0, 5.0], [3.0]])
    assert mean.tolist() == [2.0, 2.0, 5.0]
    assert spread.tolist() == [stdev([1.0, 3.0]), 0.0, 0.0]


def test_table_is_not_lost_to_a_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no figure")

    pretend_to_train(monkeypatch)
    monkeypatch.setattr(sweep, "write_figure", fail)
    assert sweep.main(GRID) == 1
    printed = capsys.readouterr()
    assert "50.00% ± 0.00%" in printed.out
    assert printed.err == "error: no figure\n"
    assert len(rows()) == 2


def test_values_that_nearly_agree_are_different_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = pretend_to_train(monkeypatch)
    dirs = ["a/b", "a_b", "a%2Fb"]
    assert sweep.main([*MOONS, "--ema", "0.9999", "0.99990001", "--data-dir", *dirs]) == 0
    assert len(set(seen)) == len(rows()) == 6
    assert "out/ema=0.99990001,data_dir=a%2Fb/seed=0" in seen


def test_switches_and_layers_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []

    def run(args: Sequence[str]) -> int:
        commands.append(" ".join(args))
        return 1

    monkeypatch.setattr(train, "run", run)
    sweep.main([*MOONS, "--no-batch-norm", "--batch-norm", "--hidden", "16,8", "32,"])
    for switch in ("--batch-norm", "--no-batch-norm"):
        for sizes in ("16 8", "32"):
            assert sum(f" {switch} --hidden {sizes} --seed" in line for line in commands) == 1
    assert len(commands) == 4


def test_several_words_of_a_list_are_one_value() -> None:
    settings = study.parse_settings(["--hidden", "16", "32", "--lr", "0.1", "1", "--device", "a:1"])
    assert settings.swept.keys() == {"lr"}
    assert settings.fixed == ("--hidden", "16", "32", "--device", "a:1")


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
        (["--lr", "0.1:1", "--sampler", "tpe", "--trials", "0"], "--trials must be at least 1"),
        (["--lr", "0.1", "1", "--lr", "2"], "--lr is given twice"),
        (["--batch-norm", "True", "False"], "give --batch-norm --no-batch-norm"),
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


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("study.db", "--storage study.db is no address of a database, such as sqlite:///study.db"),
        ("abacus://study", "--storage abacus://study is no address of a database"),
        ("firebird+absent://host/study", "is no address of a database"),
        ("oracle://host/study", "needs a package that is not installed: No module named"),
        ("sqlite:///none/study.db", "cannot be used: unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_had(
    storage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([*MOONS, "--lr", "0.003", "0.03", "--storage", storage]) == 1
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


def test_damage_is_named_and_made_up_for(capsys: pytest.CaptureFixture[str]) -> None:
    args = [*MOONS, "--lr", "0.003", "0.03"]
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
