"""The training program end to end."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import manual_ops.nn
import train
from tests.training.files import write_folder, write_idx, write_mnist
from training import loop
from training.cli import parse_args
from training.curves import read_curves
from training.data import load
from training.restore import restore
from training.setup import build_model
from training.step_metrics import StepMetrics

PROGRAM = Path(train.__file__)
SHORT = ("--epochs", "1", "--limit-train", "64", "--no-tensorboard")

Run = Callable[..., dict[str, object]]
Curve = Callable[..., list[float]]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Run in a directory of its own, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run() -> Run:
    """Run the program with arguments; return the contents of metrics.json."""

    def run(*args: str, run_dir: str = "run") -> dict[str, object]:
        assert train.main(["--no-report", *args, "--run-dir", run_dir]) == 0
        return json.loads(Path(run_dir, "metrics.json").read_text())

    return run


@pytest.fixture
def curve(run) -> Curve:
    """Train with arguments; return the classification loss of the first steps."""

    def curve(*args: str, steps: int) -> list[float]:
        run(*args, "--no-tensorboard")
        losses = [loss for _, loss in read_curves(Path("run"))["loss/train"]]
        assert len(losses) >= steps
        return losses[:steps]

    return curve


class TestDefaultRun:
    def test_reaches_98_percent_on_the_digits(self):
        """As a user starts it: no arguments, output to a pipe."""
        finished = subprocess.run(
            [sys.executable, PROGRAM], capture_output=True, text=True, timeout=300, check=False
        )
        assert finished.returncode == 0, finished.stderr
        (run_dir,) = Path("runs").iterdir()
        metrics = json.loads((run_dir / "metrics.json").read_text())
        assert metrics["test_accuracy"] >= 0.98
        assert finished.stderr == ""
        assert "\r" not in finished.stdout
        assert re.search(rf"parameters +{metrics['parameters']:,}\n", finished.stdout)
        assert f"test set  {metrics['test_accuracy']:8.2%}" in finished.stdout
        for epoch in range(1, metrics["epochs"] + 1):
            assert f"\nepoch {epoch:3d}" in finished.stdout

    def test_leaves_everything_in_the_run_folder(self, run, tmp_path):
        metrics = run("--epochs", "2", "--report")
        names = {path.name.partition(".tfevents")[0] for path in Path("run").iterdir()}
        assert names == {
            "config.yaml", "inputs.json", "weights.pt", "metrics.json", "curves.jsonl",
            "report.html", "figures", "events.out", "checkpoints",
        }  # fmt: skip
        assert metrics.keys() >= {
            "test_accuracy", "test_loss", "per_class_accuracy", "parameters", "epochs", "seconds",
            "images_per_second",
        }  # fmt: skip
        assert metrics["epochs"] == 2
        assert len(metrics["per_class_accuracy"]) == 10
        assert yaml.safe_load(Path("run/config.yaml").read_text())["epochs"] == 2

    def test_the_weights_give_the_reported_accuracy_on_either_backend(self, run):
        metrics = run("--epochs", "2")
        config = parse_args(["--config", "run/config.yaml"])
        data = load(config, torch.device("cpu"))
        for layers in train.LAYERS.values():
            model = train.build_model(config, data, layers)
            model.load_state_dict(torch.load("run/weights.pt", weights_only=True))
            model.eval()
            predicted = model(data.normalise(data.test.inputs)).argmax(1)
            accuracy = (predicted == data.test.labels).float().mean().item()
            assert accuracy == pytest.approx(metrics["test_accuracy"])

    def test_a_new_run_takes_the_former_one_out_of_its_folder(self, run):
        """All that the programs wrote there, and nothing of the user's."""
        run("--epochs", "1", "--report")
        assert evaluate.main(["run", "--split", "validation"]) == 0
        before = set(Path("run").rglob("*"))
        mine = [Path("run", name) for name in ("notes.md", "figures/mine.png", "evaluations/mine")]
        for path in mine:
            path.touch()
        Path("run/.weights.pt.abc.unfinished").touch()  # of a process that was killed
        train.make_run_dir(parse_args(["--run-dir", "run"]), ExitStack())
        assert len(before) > 20
        left = {path for path in Path("run").rglob("*") if path.is_file()}
        assert left == set(mine)

    def test_of_a_former_run_nothing_is_tested_or_shown(self, run, monkeypatch, capsys):
        run("--epochs", "1", "--report")

        def die(*args):
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(train, "train", die)
            with pytest.raises(SystemExit):
                train.main(["--seed", "1", "--run-dir", "run"])
        assert evaluate.main(["run"]) == 1
        assert "run has no weights.pt" in capsys.readouterr().err
        run("--seed", "1", "--epochs", "1", "--no-tensorboard")
        assert {path.name for path in Path("run").iterdir()} == {
            "config.yaml", "inputs.json", "weights.pt", "metrics.json", "curves.jsonl",
            "checkpoints",
        }  # fmt: skip

    def test_runs_started_in_the_same_second_get_folders_of_their_own(self):
        config = parse_args([])
        with ExitStack() as held:
            assert len({train.make_run_dir(config, held) for _ in range(3)}) == 3


class TestRepeatability:
    def test_the_same_seed_gives_the_same_curve(self, curve):
        args = ("--epochs", "2", "--augment", "--dropout", "0.2", "--batch-size", "100")
        first, second = (curve(*args, steps=24) for _ in range(2))
        assert first == second

    def test_another_seed_gives_another_curve(self, curve):
        first, second = (curve(*SHORT, "--seed", seed, steps=1) for seed in "01")
        assert first != second

    def test_a_run_can_be_repeated_from_its_config(self, run):
        first = run("--dataset", "moons", "--epochs", "2", "--lr", "0.02")
        again = run("--config", "run/config.yaml", run_dir="again")
        other = run("--config", "run/config.yaml", "--lr", "0.01", run_dir="other")
        losses = [
            [epoch["loss/train_epoch"] for epoch in metrics["history"]]
            for metrics in (first, again, other)
        ]
        assert losses[0] == losses[1]
        assert losses[0] != losses[2]


class TestBackends:
    """The same model and seed on manual_ops.nn and torch.nn: equal to within float noise.

    Every step amplifies the rounding of those before it. In float64 50 steps leave it below a
    millionth, where a wrong gradient would show at once; float32 is what people run.
    """

    def curves(self, curve: Curve, *args: str) -> tuple[list[float], list[float]]:
        manual, reference = (curve(*args, "--backend", name, steps=50) for name in train.LAYERS)
        assert np.mean(reference[-10:]) < 0.8 * reference[0]  # it learns: the curve says something
        return manual, reference

    @pytest.fixture
    def double(self) -> Iterator[None]:
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize(
        "args",
        [
            "--model mlp --activation sigmoid --lr 0.01",
            "--model mlp --activation leaky_relu --batch-norm --dropout 0.1",
            "--model mnist-cnn --augment",
            "--model cifar-cnn --label-smoothing 0.1",
            "--model fashion-cnn",
            "--model fashion-cnn --optimizer sgd --lr 0.01 --weight-decay 0.01",
            "--model fashion-cnn --optimizer sgd-moving-average --lr 0.1",
            "--model fashion-cnn --optimizer adam --lr 0.001 --amsgrad",
        ],
    )
    def test_digits(self, curve, args):
        common = "--batch-size 100 --epochs 5 --lr 0.002 --schedule constant "
        manual, reference = self.curves(curve, *(common + args).split(" "))
        np.testing.assert_allclose(manual, reference, rtol=1e-6)

    def test_mnist_in_float32(self, curve, tmp_path):
        """The first 50 steps on MNIST; without the real one, on files in its format."""
        root = os.environ.get("MANUAL_OPS_DATA")
        if root is None:
            root = str(tmp_path)
            write_mnist(tmp_path, train=1400)
        manual, reference = self.curves(
            curve, "--dataset", "mnist", "--data-dir", root, "--no-augment", "--limit-train",
            "1280", "--epochs", "5", "--schedule", "constant", "--lr", "0.002",
        )  # fmt: skip
        np.testing.assert_allclose(manual[:10], reference[:10], rtol=1e-4)
        np.testing.assert_allclose(manual, reference, rtol=1e-2)


class TestDataSets:
    def test_moons(self, run):
        metrics = run("--dataset", "moons", "--report")
        assert metrics["model"] == "mlp"
        assert metrics["test_accuracy"] > 0.96
        assert set(metrics["per_class_accuracy"]) == {"upper", "lower"}
        assert not Path("run/figures/kernels.png").exists()

    def test_mnist_files(self, run, tmp_path):
        write_mnist(tmp_path, train=1000)
        metrics = run("--dataset", "mnist", "--data-dir", str(tmp_path), "--no-augment")
        assert metrics["parameters"] == 14_682
        assert metrics["test_accuracy"] > 0.9

    def test_folder(self, run, tmp_path):
        write_folder(tmp_path / "pets", classes="abc")
        metrics = run("--dataset", "folder", "--data-dir", "pets", "--model", "vgg", *SHORT)
        assert list(metrics["per_class_accuracy"]) == ["a", "b", "c"]

    def test_one_class_that_no_common_font_has(self, run, capfd):
        """Draws and counts without a word of warning, which would be an error here."""
        write_folder(Path("pets"), classes="猫")
        args = ("--dataset", "folder", "--data-dir", "pets", "--model", "mlp", "--report", *SHORT)
        assert run(*args)["test_accuracy"] == 1
        assert "font" not in capfd.readouterr().err


class TestSettings:
    @pytest.mark.parametrize(
        "args",
        [
            "--optimizer sgd --nesterov --momentum 0.8",
            "--optimizer sgd-moving-average --weight-decay 0.001",
            "--optimizer adam --amsgrad",
            "--optimizer adamw --weight-decay 0.1",
            "--schedule constant",
            "--schedule cosine",
            "--augment --label-smoothing 0.1",
            "--precision bfloat16",
            "--schedule linear --warmup 0.2 --clip-norm 0.1 --bias-lr 0.01",
            "--cutout 3 --mixup 0.5 --ema 0.9 --test-flip --compile",
            "--model vgg",
            "--model mlp --hidden 20 10 --activation leaky_relu --negative-slope 0.2 --batch-norm",
            "--model mlp --hidden --select last",
            "--device cpu --threads 1",
        ],
    )
    def test_a_short_run(self, run, args):
        metrics = run(*SHORT, *args.split(" "))
        assert 0 <= metrics["test_accuracy"] <= 1
        assert np.isfinite(metrics["test_loss"])

    def test_compile(self, run, monkeypatch, fresh_compiler):
        """The whole forward pass in one graph, with the loss of the eager run."""
        eager = run(*SHORT)
        whole_graph = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
        monkeypatch.setattr(torch, "compile", whole_graph)
        compiled = run(*SHORT, "--compile")
        losses = [metrics["history"][0]["loss/train_epoch"] for metrics in (eager, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_bfloat16_computes_in_bfloat16(self, run, monkeypatch):
        dtypes = set()
        add = StepMetrics.add

        def spy(self, step, learning_rate, loss, logits, labels):
            dtypes.add(logits.dtype)
            add(self, step, learning_rate, loss, logits, labels)

        monkeypatch.setattr(StepMetrics, "add", spy)
        run(*SHORT, "--precision", "bfloat16")
        assert dtypes == {torch.bfloat16}

    def test_best_and_last_weights(self, run):
        """A learning rate that spoils the weights late: best and last epoch differ."""
        args = ("--epochs", "6", "--lr", "0.3", "--schedule", "constant", "--optimizer", "sgd")
        best, last = (run(*args, "--select", select, run_dir=select) for select in ("best", "last"))
        accuracies = [epoch["accuracy/validation"] for epoch in best["history"]]
        assert accuracies == [epoch["accuracy/validation"] for epoch in last["history"]]
        assert accuracies[best["selected_epoch"] - 1] == max(accuracies)
        assert best["validation_accuracy"] == max(accuracies)
        assert last["selected_epoch"] == 6
        assert last["validation_accuracy"] == accuracies[-1]

    def test_the_test_set_is_touched_once_at_the_end(self, run, monkeypatch):
        sizes = []
        take = loop.evaluate

        def spy(model, criterion, data, split, **options):
            sizes.append(len(split))
            return take(model, criterion, data, split, **options)

        for module in (loop, train):
            monkeypatch.setattr(module, "evaluate", spy)
        run("--epochs", "3", "--limit-train", "64")
        assert sizes == [144, 144, 144, 359]

    def test_the_average_of_the_weights_is_what_is_tested_and_kept(self, run, monkeypatch):
        tested = []
        take = loop.evaluate

        def spy(model, *args, **options):
            tested.append({name: value.clone() for name, value in model.state_dict().items()})
            return take(model, *args, **options)

        monkeypatch.setattr(loop, "evaluate", spy)
        args = ("--model", "mlp", "--hidden", "--lr", "0.1", "--select", "last", *SHORT)
        args = (*args, "--batch-size", "16", "--epochs", "2")  # of four steps
        plain = []
        take_step = loop.take_step

        def follow(config, state):
            take_step(config, state)
            plain.append(state.model.state_dict()["output.weight"].clone())

        monkeypatch.setattr(loop, "take_step", follow)
        run(*args, "--ema", "0.75")
        average = plain[0]
        for weight in plain[1:]:
            average = 0.75 * average + 0.25 * weight
        torch.testing.assert_close(tested[-1]["output.weight"], average)
        kept = torch.load("run/weights.pt", weights_only=True)
        assert kept.keys() == tested[-1].keys()
        assert torch.equal(kept["output.weight"], tested[-1]["output.weight"])

    def test_clipping_bounds_the_step(self, run):
        """Plain SGD moves by the learning rate times the clipped norm."""
        moved = {}
        for name, clip in (("free", ()), ("clipped", ("--clip-norm", "0.01"))):
            args = ("--model", "mlp", "--hidden", "--optimizer", "sgd", "--momentum", "0")
            args = (*args, "--schedule", "constant", "--lr", "1", "--batch-size", "64", *SHORT)
            run(*args, *clip, run_dir=name)
            config = parse_args(args)
            data = load(config, torch.device("cpu"))
            start = build_model(config, data, manual_ops.nn).state_dict()
            end = torch.load(f"{name}/weights.pt", weights_only=True)
            moved[name] = sum((end[key] - start[key]).square().sum() for key in start) ** 0.5
        assert moved["free"] > 0.1
        assert moved["clipped"] == pytest.approx(0.01, rel=1e-4)

    def test_without_progress_training_stops_early(self, run, capsys):
        """A learning rate too small to change any prediction."""
        args = ("--lr", "1e-12", "--schedule", "constant", "--limit-train", "64", "--no-augment")
        args = (*args, "--model", "mlp", "--hidden", "--patience", "2")
        metrics = run(*args, "--epochs", "9")
        accuracies = [epoch["accuracy/validation"] for epoch in metrics["history"]]
        assert len(accuracies) < 9
        best = metrics["selected_epoch"]
        assert len(accuracies) == best + 2
        assert f"stopped after epoch {best + 2} of 9: --patience 2" in capsys.readouterr().out
        assert accuracies[best - 1] == max(accuracies)
        before = Path("run/metrics.json").stat().st_mtime_ns
        assert train.main(["--resume", "run"]) == 0  # it has nothing left to do
        assert Path("run/metrics.json").stat().st_mtime_ns > before
        assert json.loads(Path("run/metrics.json").read_text())["history"] == metrics["history"]

    def test_a_flipped_test_averages_two_views(self, run):
        args = ("--dataset", "mnist", "--data-dir", "d", "--limit-train", "100", "--epochs", "1")
        write_mnist(Path("d"))
        plain, flipped = (
            run(*args, *flip, run_dir=str(len(flip))) for flip in ((), ("--test-flip",))
        )
        assert plain["test_loss"] != flipped["test_loss"]
        history = [metrics["history"][0] for metrics in (plain, flipped)]
        assert history[0]["loss/train_epoch"] == history[1]["loss/train_epoch"]
        assert history[0]["loss/validation"] != history[1]["loss/validation"]
        again = evaluate.test(restore(Path("1"), "cpu"), evaluate.Arguments(run_dir=Path("1")))
        assert again.evaluation.loss == flipped["test_loss"]

    def test_speed_resnet_learns_with_its_recipe(self, run):
        write_mnist(Path("d"), train=1000, test=100)
        metrics = run(
            "--dataset", "mnist", "--data-dir", "d", "--model", "speed-resnet", "--epochs", "3",
            "--width", "0.25", "--batch-size", "50", "--validation", "0.1",
        )  # fmt: skip
        assert metrics["test_accuracy"] > 0.9  # a row of each image tells its class
        weights = torch.load("run/weights.pt", weights_only=True)
        assert torch.equal(weights["stages.0.norm1.weight"], torch.ones(16))


class TestTensorBoard:
    def test_what_is_shown(self, run):
        run("--epochs", "2", "--weight-decay", "0.01", "--report")
        events = EventAccumulator("run")
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        steps = 2 * 20
        for tag in ("loss/train", "accuracy/train", "schedule/learning_rate"):
            assert [event.step for event in scalars[tag]] == list(range(1, steps + 1))
        for tag in ("loss/validation", "accuracy/validation", "speed/images_per_second"):
            assert [event.step for event in scalars[tag]] == [20, 40]
        assert {event.step for event in scalars["loss/weight_decay"]} == {20, 40}
        layers = {"conv1", "norm1", "conv2", "norm2", "conv3", "norm3", "linear", "output"}
        assert {tag for tag in scalars if tag.startswith("norm/gradient/")} == {
            f"norm/gradient/{layer}" for layer in layers
        }
        assert [event.step for event in events.Images("pictures/kernels")] == [0, 20, 40]
        assert [event.step for event in events.Images("pictures/samples")] == [0]

    def test_the_report_and_the_settings_are_in_the_same_run(self, run):
        metrics = run("--epochs", "1", "--report")
        assert [path.parent for path in Path("run").rglob("events.*")] == [Path("run")]
        events = EventAccumulator("run")
        events.Reload()
        shown = {tag for tag in events.Tags()["images"] if tag.startswith("report/")}
        assert shown == {f"report/{path.stem}" for path in Path("run/figures").iterdir()}
        assert {"report/confusion_matrix", "report/kernels", "report/loss"} <= shown
        assert {tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")} == {
            f"precision_recall/{digit}" for digit in range(10)
        }
        (accuracy,) = events.Scalars("accuracy/test")
        assert accuracy.value == pytest.approx(metrics["test_accuracy"])
        assert "_hparams_/session_start_info" in events.summary_metadata

    def test_none_without_it(self, run):
        run("--epochs", "1", "--no-tensorboard", "--report")
        assert list(Path("run").rglob("events.*")) == []
        assert Path("run/figures/loss.png").exists()


class TestMistakes:
    """Each ends with one line that says what is wrong, and no traceback."""

    def error(self, capsys: pytest.CaptureFixture[str], *args: str, code: int = 1) -> str:
        assert train.main(args) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("--dataset folder --data-dir none", "none/train is not a directory"),
            ("--dataset moons --model vgg", "vgg needs images"),
            ("--dataset moons --augment", "--augment needs images"),
            ("--model mnist-cnn --hidden 3", "mnist-cnn has no option --hidden"),
            ("--model cifar-cnn --dropout 0.5", "cifar-cnn has no option --dropout"),
            ("--model mlp --batch-norm --batch-size 1", "batch norm, which this mlp has, needs"),
            ("--model resnet18 --limit-train 1", "batch norm, which this resnet18 has, needs"),
            ("--model vgg --batch-size 1", "needs at least 2 training examples"),
            ("--device abacus", "--device abacus is not available here"),
            ("--device cuda:99", "--device cuda:99 is not available here"),
            ("--threads 100000", "--threads must be at most"),
            ("--config none.yaml", "none.yaml"),
            ("--run-dir /dev/null/run", "/dev/null/run"),
        ],
    )
    def test_settings(self, args, message, capsys):
        assert message in self.error(capsys, *args.split())
        assert not Path("runs").exists()

    @pytest.mark.parametrize("args", ["--model lenet", "--epochs 0", "--lr -1", "--no-such-flag"])
    def test_flags(self, args, capsys):
        with pytest.raises(SystemExit) as raised:
            train.main(args.split())
        assert raised.value.code == 2
        assert args.split()[0] in capsys.readouterr().err

    def test_labels_out_of_range(self, capsys, tmp_path):
        write_idx(write_mnist(tmp_path) / "train-labels-idx1-ubyte", np.full(300, 10))
        error = self.error(capsys, "--dataset", "mnist", "--data-dir", str(tmp_path))
        assert "labels from 10 to 10" in error

    def test_truncated_images(self, capsys, tmp_path):
        path = write_mnist(tmp_path) / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:5000])
        error = self.error(capsys, "--dataset", "mnist", "--data-dir", str(tmp_path))
        assert "damaged" in error

    def test_a_file_that_is_no_image(self, capsys, tmp_path):
        write_folder(tmp_path / "pets")
        Path("pets/train/a/0.png").write_text("no image")
        error = self.error(capsys, "--dataset", "folder", "--data-dir", "pets")
        assert "pets/train/a/0.png is not an image" in error

    def test_without_batch_norm_a_batch_may_be_one_example(self):
        args = ("--model", "mlp", "--limit-train", "1", "--epochs", "1", "--no-tensorboard")
        assert train.main([*args, "--no-report", "--run-dir", "run"]) == 0

    def test_a_learning_rate_that_diverges(self, capsys):
        args = ("--optimizer", "sgd", "--lr", "1e20", "--schedule", "constant", *SHORT)
        error = self.error(capsys, *args, "--batch-size", "8", code=3)
        assert re.search(r"in step 2: its loss is nan.* gradient .* of output\. Lower --lr", error)
        assert "Last good checkpoint: none" in error

    def test_the_last_good_checkpoint_is_named(self, capsys):
        args = ("--optimizer", "sgd", "--lr", "1e20", "--schedule", "constant", *SHORT)
        args = (*args, "--batch-size", "8", "--checkpoint-every", "0", "--run-dir", "run")
        error = self.error(capsys, *args, code=3)
        assert error.endswith("Last good checkpoint: run/checkpoints/step-1.pt\n")
        assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-1.pt"]

    def test_an_error_of_the_program_itself_is_not_hidden(self, monkeypatch):
        def fail(*args):
            raise ValueError("a bug")

        monkeypatch.setattr(train, "train", fail)
        with pytest.raises(ValueError, match="a bug"):
            train.main([])
