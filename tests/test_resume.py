"""Runs that are ended at any point, and go on as if they had not been."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train
from tests.runs import SMALL, assert_equal_runs, newest, result, stop_after

PROGRAM = Path(train.__file__)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("args", "steps"),
    [
        ("--optimizer sgd --nesterov", [1]),
        ("--optimizer sgd-moving-average --lr 0.1 --schedule cosine", [7, 12]),
        ("--optimizer adam --amsgrad --dropout 0.3", [20]),
        ("--optimizer adamw --weight-decay 0.1 --augment", [19, 1, 1]),
        ("--batch-norm --dropout 0.5 --schedule constant", [21, 18]),
        ("--model fashion-cnn --augment --dropout 0.2 --select best --hidden", [25]),
        ("--precision bfloat16 --label-smoothing 0.1", [39]),
        ("--mixup 0.5 --cutout 3 --ema 0.9 --clip-norm 1 --patience 1", [7, 13]),
        ("--optimizer muon --lr 0.1 --bias-lr 0.01 --schedule linear --warmup 0.1", [18]),
        ("--backend torch --dropout 0.5", [40]),
    ],
)
def test_a_run_in_pieces_is_the_run_in_one_piece(args, steps, monkeypatch):
    """Stopped in the midst of an epoch, at its end, twice, at the very end."""
    args = [*SMALL, *args.split()]
    assert train.main([*args, "--run-dir", "whole"]) == 0
    for start, step in enumerate(steps):
        with monkeypatch.context() as patch:
            stop_after(step, patch)
            where = ["--resume", "parts"] if start else [*args, "--run-dir", "parts"]
            assert train.main(where) == 128 + signal.SIGINT
    assert train.main(["--resume", "parts"]) == 0
    assert_equal_runs("whole", "parts")


def test_compiled(monkeypatch, fresh_compiler):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn: compile(fn, backend="aot_eager"))
    args = [*SMALL, "--dropout", "0.5", "--compile"]
    assert train.main([*args, "--run-dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(13, patch)
        assert train.main([*args, "--run-dir", "parts"]) == 130
    torch.compiler.reset()
    assert train.main(["--resume", "parts"]) == 0
    assert_equal_runs("whole", "parts")


def start(*args: str) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_good_order(number):
    process = start(*SMALL, "--epochs", "100000", "--schedule", "constant", "--run-dir", "run")
    with process:
        for line in process.stdout:
            if line.startswith("epoch   2"):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = int(newest("run").stem[5:])
    assert errors == (
        f"stopped after step {step} of 2000000; go on with: python train.py --resume run\n"
    )
    assert torch.load("run/weights.pt", weights_only=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["train.evaluate", "training.html_report.render"])
def test_signals_after_training_end_it_in_good_order(where, number, monkeypatch, capsys):
    """In the test, and while the report is written."""
    args = [*SMALL, "--report", "--run-dir", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda *args, **options: signal.raise_signal(number))
        assert train.main(args) == 128 + number
    assert capsys.readouterr().err == (
        "stopped after step 40 of 40; go on with: python train.py --resume run\n"
    )
    assert not Path("run/metrics.json").exists()
    assert train.main(["--resume", "run"]) == 0
    assert Path("run/metrics.json").exists()
    assert Path("run/report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_before_training_end_it_in_good_order(number, monkeypatch, capsys):
    args = [*SMALL, "--run-dir", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "initial_state", lambda *args: signal.raise_signal(number))
        assert train.main(args) == 128 + number
    assert capsys.readouterr().err == (
        "stopped before training began; the same command starts it again\n"
    )
    assert train.main(args) == 0


@pytest.fixture
def stopped(monkeypatch) -> None:
    """A run in the folder ``run`` that was stopped after step 13 of 40."""
    with monkeypatch.context() as patch:
        stop_after(13, patch)
        args = (*SMALL, "--checkpoint-every", "0", "--run-dir", "run")
        assert train.main(args) == 130


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Malicious:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (Path.touch, (Path("evidence"),))


@pytest.mark.usefixtures("stopped")
class TestDamage:
    @pytest.mark.parametrize("damage", [shorten, flip_a_bit, lambda path: path.write_bytes(b"")])
    def test_a_damaged_checkpoint_is_passed_over(self, damage, capsys):
        assert train.main([*SMALL, "--run-dir", "whole"]) == 0
        damage(Path("run/checkpoints/step-13.pt"))
        assert train.main(["--resume", "run"]) == 0
        out, err = capsys.readouterr()
        assert err.startswith("warning: a checkpoint is passed over: run/checkpoints/step-13.pt is")
        assert "resuming run after step 12 of 40" in out
        assert_equal_runs("whole", "run")

    def test_code_in_a_checkpoint_is_not_run(self, capsys):
        torch.save(Malicious(), "run/checkpoints/step-13.pt")
        assert train.main(["--resume", "run"]) == 0
        assert "step-13.pt is refused: it holds more than tensors" in capsys.readouterr().err
        assert not Path("evidence").exists()

    def test_nothing_but_code_ends_it(self, capsys):
        for path in Path("run/checkpoints").iterdir():
            torch.save({"settings": {}, "state": {"model": Malicious()}}, path)
        assert train.main(["--resume", "run"]) == 1
        error = capsys.readouterr().err.splitlines()
        assert error[2] == (
            "error: no checkpoint in run/checkpoints can be read: delete the folder of the run and "
            "start it again"
        )
        assert len(error) == 3
        assert all("reading that could run any code" in line for line in error[:2])
        assert "weights_only" not in "".join(error)  # PyTorch's advice would run it
        assert not Path("evidence").exists()

    @pytest.mark.parametrize(
        "content", [[1, 2], {"state": {}}, {"settings": 3, "state": {}}, torch.ones(3)]
    )
    def test_a_file_of_something_else_is_passed_over(self, content, capsys):
        torch.save(content, "run/checkpoints/step-13.pt")
        assert train.main(["--resume", "run"]) == 0
        assert "step-13.pt holds no checkpoint of this program" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("part", "content"),
        [
            ("model", {"output.weight": torch.ones(3)}),
            ("optimizer", {"state": {}}),
            ("progress", 3),
            ("generators", {"processes": [{}]}),
            ("metrics", {"epoch": [1.0]}),
        ],
    )
    def test_a_state_that_does_not_fit_is_refused(self, part, content, capsys):
        path = newest("run")
        saved = torch.load(path, weights_only=True)
        saved["state"][part] = content
        torch.save(saved, path)
        assert train.main(["--resume", "run"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: the checkpoint's {part} does not fit: ")
        assert error.count("\n") == 1

    def test_a_file_with_a_name_of_the_users_own_is_left_alone(self):
        Path("run/checkpoints/step-13 copy.pt").write_text("mine")
        assert train.main(["--resume", "run"]) == 0
        assert Path("run/checkpoints/step-13 copy.pt").read_text() == "mine"

    def test_without_a_good_checkpoint_it_does_not_start_over(self, capsys):
        for path in Path("run/checkpoints").iterdir():
            shorten(path)
        assert train.main(["--resume", "run"]) == 1
        assert "error: no checkpoint in run/checkpoints can be read" in capsys.readouterr().err
        assert len(list(Path("run/checkpoints").iterdir())) == 2


@pytest.mark.usefixtures("stopped")
class TestSettings:
    @pytest.mark.parametrize(
        ("args", "differing"),
        [
            ("--lr 0.5", ["--lr 0.001 there, 0.5 here"]),
            ("--seed 1 --hidden 16 8", ["--hidden [16] there, [16, 8] here", "--seed 0 there"]),
            ("--model fashion-cnn --hidden", ["--model mlp there, fashion-cnn here"]),
            ("--epochs 3", ["--epochs 2 there, 3 here"]),  # the one-cycle schedule is for 2
        ],
    )
    def test_that_do_not_fit_are_refused(self, args, differing, capsys):
        before = Path("run/config.yaml").read_text()
        assert train.main(["--resume", "run", *args.split()]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(text in error for text in differing)
        assert Path("run/config.yaml").read_text() == before

    def test_that_make_no_difference_may_change(self):
        args = ("--no-tensorboard", "--threads", "1", "--checkpoint-every", "1e9")
        assert train.main(["--resume", "run", *args]) == 0

    def test_an_edited_file_of_settings_is_refused(self, capsys):
        path = Path("run/config.yaml")
        path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8"))
        assert train.main(["--resume", "run"]) == 1
        assert "--momentum 0.9 there, 0.8 here" in capsys.readouterr().err

    @pytest.mark.parametrize("args", ["--config run/config.yaml", "--run-dir other"])
    def test_folder_and_settings_are_those_of_the_run(self, args, capsys):
        with pytest.raises(SystemExit):
            train.main(["--resume", "run", *args.split()])
        assert "--resume has settings and folder already" in capsys.readouterr().err

    def test_a_run_that_has_not_ended_is_not_overwritten(self, capsys):
        assert train.main([*SMALL, "--run-dir", "run"]) == 1
        assert "run holds a run that has not ended" in capsys.readouterr().err
        assert newest("run").name == "step-13.pt"

    def test_another_state_is_refused(self, capsys, monkeypatch):
        """A checkpoint of a version of this program that kept more, or less."""
        path = newest("run")
        saved = torch.load(path, weights_only=True)
        saved["state"]["average"] = {}
        torch.save(saved, path)
        assert train.main(["--resume", "run"]) == 1
        assert "of another version of this program: average" in capsys.readouterr().err


class TestEnds:
    def test_a_finished_run_reports_again(self, capsys):
        assert train.main([*SMALL, "--run-dir", "run"]) == 0
        before = result("run")
        capsys.readouterr()
        assert train.main(["--resume", "run"]) == 0
        out, _ = capsys.readouterr()
        assert "resuming run after step 40 of 40: training is complete" in out
        assert "\nepoch" not in out
        assert "test set" in out
        assert result("run") == before

    def test_a_report_of_before_goes_if_none_is_wanted(self):
        assert train.main([*SMALL, "--report", "--run-dir", "run"]) == 0
        assert train.main(["--resume", "run", "--no-report"]) == 0
        assert Path("run/metrics.json").exists()
        assert not Path("run/report.html").exists()
        assert not Path("run/figures").exists()

    def test_a_constant_schedule_can_go_on_for_more_epochs(self):
        args = [*SMALL, "--schedule", "constant"]
        assert train.main([*args, "--epochs", "3", "--run-dir", "whole"]) == 0
        assert train.main([*args, "--run-dir", "parts"]) == 0
        assert train.main(["--resume", "parts", "--epochs", "3"]) == 0
        assert_equal_runs("whole", "parts")
        assert yaml.safe_load(Path("parts/config.yaml").read_text())["epochs"] == 3

    def test_a_resume_for_fewer_epochs_is_at_its_end(self):
        args = [*SMALL, "--schedule", "constant", "--run-dir", "run"]
        assert train.main(args) == 0
        assert train.main(["--resume", "run", "--epochs", "1"]) == 0
        assert len(result("run")["metrics"]["history"]) == 2

    def test_a_run_without_checkpoint_begins_again(self, monkeypatch, capsys):
        assert train.main([*SMALL, "--run-dir", "whole"]) == 0
        assert train.main([*SMALL, "--run-dir", "run"]) == 0
        for path in Path("run/checkpoints").iterdir():
            path.unlink()
        assert train.main(["--resume", "run"]) == 0
        assert "resuming run after step 0 of 40" in capsys.readouterr().out
        assert_equal_runs("whole", "run")

    @pytest.mark.parametrize("folder", ["none", "."])
    def test_where_there_is_no_run(self, folder, capsys):
        assert train.main(["--resume", folder]) == 1
        assert f"there is no run to resume in {folder}" in capsys.readouterr().err
