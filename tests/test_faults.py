"""What can be wrong with files around a run: a clear line, or recovery, and nothing lost."""

import signal
from pathlib import Path

import pytest
import torch

import evaluate
import train
from tests.faults import disk_full_at
from tests.runs import SMALL, assert_equal_runs, newest, stop_after
from tests.starter import Starter
from tests.training.files import write_mnist
from training.lock import exclusive

ARGS = (*SMALL, "--checkpoint-every", "0")


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """Folder of a run that nothing happened to."""
    run_dir = str(tmp_path_factory.mktemp("whole") / "run")
    assert train.main([*ARGS, "--run-dir", run_dir]) == 0
    return run_dir


def stop(monkeypatch: pytest.MonkeyPatch, step: int, *args: str) -> None:
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert train.main([*args, "--run-dir", "run"]) == 128 + signal.SIGINT


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on the error output."""
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert found.count("\n") == 1, found
    return found


class TestFullDisk:
    @pytest.mark.parametrize("room", [0, 1500, 5000, 8000, 36_000])
    def test_a_run_in_it_goes_on_when_there_is_room(self, room, whole, monkeypatch, capsys):
        """Full at the settings, the curves, TensorBoard's events, the weights, a checkpoint."""
        stop(monkeypatch, 13, *ARGS)
        capsys.readouterr()
        with disk_full_at(room):
            assert train.main(["--resume", "run"]) == 1
        message = error(capsys)
        assert "File too large" in message
        assert not list(Path("run").glob("**/.*"))
        assert train.main(["--resume", "run"]) == 0
        assert_equal_runs(whole, "run")

    def test_a_checkpoint_that_does_not_fit_leaves_the_ones_before(
        self, whole, monkeypatch, capsys
    ):
        stop(monkeypatch, 13, *ARGS)
        capsys.readouterr()
        with disk_full_at(newest("run").stat().st_size - 1000):
            assert train.main(["--resume", "run"]) == 1
        assert error(capsys) == (
            "error: [Errno 27] File too large: 'run/checkpoints/step-14.pt'. Last good checkpoint: "
            "run/checkpoints/step-13.pt. Go on from it with: python train.py --resume run\n"
        )
        assert {path.name for path in Path("run/checkpoints").iterdir()} == {
            "step-12.pt", "step-13.pt",
        }  # fmt: skip

    def test_the_report_of_a_trained_model_is_made_up_for(self, capsys):
        args = [*SMALL, "--report", "--run-dir", "run"]
        with disk_full_at(60_000):
            assert train.main(args) == 1
        assert "File too large: 'run/" in error(capsys)
        assert not Path("run/report.html").exists()
        assert train.main(["--resume", "run"]) == 0
        assert Path("run/report.html").exists()

    def test_a_new_run(self, capsys):
        with disk_full_at(100):
            assert train.main([*ARGS, "--run-dir", "run"]) == 1
        assert "File too large: 'run/config.yaml'" in error(capsys)
        assert train.main([*ARGS, "--run-dir", "run"]) == 0


class TestUnwritable:
    def test_a_file_where_the_checkpoints_go(self, capsys):
        Path("run").mkdir()
        Path("run/checkpoints").touch()
        assert train.main([*ARGS, "--run-dir", "run"]) == 1
        assert "'run/checkpoints'. Last good checkpoint: none" in error(capsys)

    @pytest.mark.parametrize("name", ["config.yaml", "inputs.json", "curves.jsonl", "weights.pt"])
    def test_a_folder_where_a_file_goes(self, name, capsys):
        Path("run", name).mkdir(parents=True)
        assert train.main([*ARGS, "--run-dir", "run"]) == 1
        assert f"'run/{name}'" in error(capsys)

    def test_a_read_only_file_system(self, monkeypatch, capsys):
        stop(monkeypatch, 3, *ARGS)
        capsys.readouterr()

        def refuse(suffix, prefix, directory):
            raise OSError(30, "Read-only file system", f"{directory}/{prefix}x{suffix}")

        with monkeypatch.context() as patch:
            patch.setattr("training.atomic.tempfile.mkstemp", refuse)
            assert train.main(["--resume", "run"]) == 1
        assert error(capsys) == "error: [Errno 30] Read-only file system: 'run/config.yaml'\n"
        assert newest("run").name == "step-3.pt"


class TestTwoAtOnce:
    @pytest.mark.parametrize("args", [(*ARGS, "--run-dir", "run"), ("--resume", "run")])
    def test_the_second_is_refused(self, args, monkeypatch, capsys):
        stop(monkeypatch, 3, *ARGS)
        files = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
        capsys.readouterr()
        with exclusive(Path("run")):
            assert train.main(args) == 1
        assert "another process is running in run. Wait for it" in error(capsys)
        assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == files

    def test_a_running_program_keeps_its_folder_until_it_ends(self, capsys):
        """The first does not notice, and ends as if it had been alone."""
        args = [*ARGS, "--epochs", "4", "--run-dir", "run"]
        with Starter() as starter:
            starter.start(*args)
            while not Path("run/checkpoints").exists():
                pass
            assert train.main(["--resume", "run"]) == 1
            assert "another process is running in run" in error(capsys)
            assert starter.wait() == 0
        assert train.main(args) == 0
        assert train.main([*args[:-1], "whole"]) == 0
        assert_equal_runs("whole", "run")


class TestTamperedData:
    def test_a_run_does_not_go_on_with_other_images(self, monkeypatch, capsys, tmp_path):
        path = write_mnist(tmp_path) / "train-images-idx3-ubyte"
        args = [*ARGS, "--dataset", "mnist", "--data-dir", str(tmp_path), "--batch-size", "32"]
        stop(monkeypatch, 3, *args)
        capsys.readouterr()
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert train.main(["--resume", "run"]) == 1
        assert "the run to resume has another data set: sha256 " in error(capsys)
        content[-1] ^= 1
        path.write_bytes(content)
        assert train.main(["--resume", "run"]) == 0


class TestWeights:
    @pytest.fixture
    def trained(self) -> Path:
        assert train.main([*SMALL, "--epochs", "1", "--run-dir", "run"]) == 0
        return Path("run/weights.pt")

    def test_one_flipped_bit_is_noticed(self, trained, capsys):
        content = bytearray(trained.read_bytes())
        content[len(content) // 2] ^= 1
        trained.write_bytes(content)
        assert evaluate.main(["run"]) == 1
        assert "run/weights.pt is damaged: wrong checksum of " in error(capsys)

    def test_code_is_not_run(self, trained, capsys):
        class Malicious:
            def __reduce__(self):
                return (Path.touch, (Path("evidence"),))

        torch.save({"output.weight": Malicious()}, trained)
        assert evaluate.main(["run"]) == 1
        assert "run/weights.pt is refused: it holds more than tensors" in error(capsys)
        assert not Path("evidence").exists()
