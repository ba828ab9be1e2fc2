"""evaluate.py and predict.py on the folder of a run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import train
from tests.training.files import write_folder
from training.restore import restore


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A short run on the digits."""
    run_dir = tmp_path_factory.mktemp("digits") / "run"
    assert train.main(["--epochs", "4", "--no-tensorboard", "--run-dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """A short run on an image folder, beside it."""
    root = write_folder(tmp_path_factory.mktemp("pets"), classes="abc", count=8)
    args = ["--dataset", "folder", "--data-dir", str(root), "--run-dir", str(root / "run")]
    assert train.main([*args, "--epochs", "1", "--no-tensorboard", "--no-report"]) == 0
    return root


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of the run, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def images(run_dir: Path, count: int) -> list[Path]:
    """Write training-like images of the digits 0, 1, 2, ... beside the run."""
    from sklearn.datasets import load_digits

    paths = [run_dir.parent / f"{i}.png" for i in range(count)]
    for pixels, path in zip(load_digits().images, paths, strict=False):
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(path)
    return paths


class TestRestore:
    def test_the_same_logits_without_the_data(self, finished):
        trained = restore(finished)
        weights = torch.load(finished / "weights.pt", weights_only=True)
        for name, value in trained.model.state_dict().items():
            assert torch.equal(value, weights[name])
        assert not trained.model.training
        assert trained.config.epochs == 4
        assert trained.inputs.classes == tuple("0123456789")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("config.yaml", r"not the folder of a run: it has no config\.yaml"),
            ("inputs.json", r"not the folder of a run: it has no inputs\.json"),
            ("weights.pt", r"has no weights\.pt: the run did not get through an epoch"),
        ],
    )
    def test_a_missing_file(self, run_dir, name, message):
        (run_dir / name).unlink()
        with pytest.raises(ValueError, match=message):
            restore(run_dir)

    @pytest.mark.parametrize("name", ["config.yaml", "inputs.json", "weights.pt", "metrics.json"])
    @pytest.mark.parametrize("kept", [0, 20])
    def test_a_file_cut_short(self, run_dir, name, kept):
        path = run_dir / name
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            restore(run_dir)

    def test_settings_of_another_version(self, run_dir, capsys):
        path = run_dir / "config.yaml"
        path.write_text(path.read_text() + "colour: blue\n")
        with pytest.raises(ValueError, match=r"config\.yaml holds settings that do not exist"):
            restore(run_dir)
        assert "--colour" in capsys.readouterr().err

    def test_weights_of_another_model(self, run_dir):
        path = run_dir / "config.yaml"
        path.write_text(path.read_text().replace("fashion-cnn", "mnist-cnn")
                        .replace("batch_norm: true", "batch_norm: false")
                        .replace("dropout: 0.3", "dropout: 0.0"))  # fmt: skip
        with pytest.raises(ValueError, match=r"weights\.pt does not fit the model"):
            restore(run_dir)

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match="none is not a folder"):
            restore(tmp_path / "none")

    def test_a_run_in_tf32_can_be_restored_where_there_is_none(self, run_dir):
        path = run_dir / "config.yaml"
        path.write_text(path.read_text().replace("precision: float32", "precision: tf32"))
        trained = restore(run_dir, "cpu")
        assert trained.config.precision == "tf32"
        assert trained.inputs.device.type == "cpu"

    def test_a_run_of_more_threads_than_this_machine_takes(self, run_dir, monkeypatch):
        path, before = run_dir / "config.yaml", torch.get_num_threads()
        path.write_text(re.sub("threads: .*", "threads: 100000", path.read_text()))
        for module in ("setup", "restore"):
            monkeypatch.setattr(f"training.{module}.MOST_THREADS", 3)
        try:
            assert restore(run_dir, "cpu").config.threads == 100000
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)

    def test_no_such_device(self, finished):
        with pytest.raises(ValueError, match="--device abacus is not available"):
            restore(finished, "abacus")


class TestEvaluate:
    def test_the_test_set_again(self, run_dir, capsys):
        metrics = json.loads((run_dir / "metrics.json").read_text())
        before = (run_dir / "report.html").read_text()
        (run_dir / "report.html").unlink()
        assert evaluate.main([str(run_dir)]) == 0
        assert (run_dir / "report.html").read_text() == before
        assert json.loads((run_dir / "metrics.json").read_text()) == metrics
        printed = capsys.readouterr().out
        assert f"accuracy {metrics['test_accuracy']:.2%}" in printed
        row = metrics["test_scores"]["classes"]["3"]
        assert re.search(
            rf"^3 +{row['precision']:.4f} +{row['recall']:.4f} +{row['f1']:.4f} +{row['support']}$",
            printed,
            re.MULTILINE,
        )

    def test_another_split_goes_into_a_folder_of_its_own(self, run_dir):
        metrics = json.loads((run_dir / "metrics.json").read_text())
        before = (run_dir / "report.html").read_bytes()
        assert evaluate.main([str(run_dir), "--split", "validation"]) == 0
        folder = run_dir / "evaluations" / "validation-set-of-digits"
        found = json.loads((folder / "metrics.json").read_text())
        assert found["accuracy"] == pytest.approx(metrics["validation_accuracy"])
        assert "Validation set of digits" in (folder / "report.html").read_text()
        assert (folder / "figures" / "confusion_matrix.png").exists()
        assert (run_dir / "report.html").read_bytes() == before

    def test_mirror_images_averaged_in_or_not(self, run_dir):
        before = (run_dir / "metrics.json").read_bytes()
        (run_dir / "report.html").unlink()
        assert evaluate.main([str(run_dir), "--test-flip", "True"]) == 0
        folder = run_dir / "evaluations" / "test-set-of-digits-with-mirror-images"
        found = json.loads((folder / "metrics.json").read_text())
        assert found["loss"] != json.loads(before)["test_loss"]
        assert not (run_dir / "report.html").exists()
        assert evaluate.main([str(run_dir), "--test-flip", "False"]) == 0  # as the run did
        assert (run_dir / "report.html").exists()
        assert (run_dir / "metrics.json").read_bytes() == before

    def test_a_data_set_that_was_moved_is_still_the_runs_own(self, run_dir):
        (run_dir / "report.html").unlink()
        assert evaluate.main([str(run_dir), "--data-dir", "elsewhere"]) == 0
        assert (run_dir / "report.html").exists()

    def test_other_images_of_another_size_and_colour(self, pets, tmp_path, capsys):
        """The run has colour images of 10x8; the others are grey, of some of its classes."""
        others = write_folder(tmp_path / "others", classes="bc", mode="L")
        args = [str(pets / "run"), "--dataset", "folder", "--data-dir", str(others)]
        assert evaluate.main([*args, "--output", str(tmp_path / "out")]) == 0
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert found["evaluated"] == "test set of folder others"
        support = {name: row["support"] for name, row in found["scores"]["classes"].items()}
        assert support == {"a": 0, "b": 6, "c": 6}
        assert "1 of 3 classes have no examples here" in (tmp_path / "out/report.html").read_text()

    def test_a_square_model_takes_images_of_any_size(self, finished, tmp_path):
        others = write_folder(tmp_path / "others", classes="01", mode="RGB")
        args = ["--dataset", "folder", "--data-dir", str(others), "--output", str(tmp_path / "out")]
        assert evaluate.main([str(finished), *args]) == 0
        assert (tmp_path / "out" / "report.html").exists()

    def test_a_run_that_did_not_end(self, run_dir):
        (run_dir / "metrics.json").unlink()
        assert evaluate.main([str(run_dir)]) == 0
        assert "did not get to its end" in (run_dir / "report.html").read_text()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("--dataset moons", "trained on inputs of shape (1, 8, 8), this data set has (2,)"),
            ("--dataset folder --data-dir none", "is not a directory"),
            ("--device abacus", "--device abacus is not available here"),
            ("--dataset moons --test-flip True", "--test-flip needs images, which moons has not"),
            ("--output /dev/null/out", "/dev/null/out"),
        ],
    )
    def test_mistakes_end_with_one_line(self, finished, args, message, capsys):
        assert evaluate.main([str(finished), *args.split()]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error


class TestPredict:
    def test_the_likeliest_classes(self, finished, capsys):
        paths = images(finished, 3)
        assert predict.main([str(finished), *map(str, paths), "--top", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[::3] == [str(path) for path in paths]
        trained = restore(finished)
        for i, path in enumerate(paths):
            pixels = torch.from_numpy(np.array(Image.open(path)))[None, None]
            probabilities = trained.model(trained.inputs.normalise(pixels))[0].softmax(0)
            for line, place in zip(lines[3 * i + 1 :][:2], probabilities.topk(2)[1], strict=True):
                assert line.split() == [f"{probabilities[place]:.2%}", str(place.item())]
            assert lines[3 * i + 1].split()[1] == str(i)  # it has learnt

    def test_what_was_done_is_said(self, finished, tmp_path, capsys):
        path = tmp_path / "photo.png"
        Image.new("RGB", (40, 30), "white").save(path)
        assert predict.main([str(finished), str(path)]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(
            f"{path}: made grey, cut to its middle and resized from 40x30 to 8x8\n"
        )
        assert printed.count("%") == 5
        assert "try --invert" in printed

    def test_one_bad_file_does_not_hide_the_others(self, finished, capsys):
        good = str(images(finished, 1)[0])
        assert predict.main([str(finished), "none.png", good]) == 1
        printed = capsys.readouterr()
        assert "none.png" in printed.err
        assert printed.out.startswith(good)

    def test_points(self, tmp_path, capsys):
        run_dir = tmp_path / "run"
        args = ["--dataset", "moons", "--epochs", "1", "--no-tensorboard", "--no-report"]
        assert train.main([*args, "--run-dir", str(run_dir)]) == 0
        assert predict.main([str(run_dir), "image.png"]) == 1
        assert "trained on points, not on images" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("args", "message"), [([], "at least one image file"), (["a.png", "--top", "0"], "--top")]
    )
    def test_arguments(self, finished, args, message, capsys):
        with pytest.raises(SystemExit) as raised:
            predict.main([str(finished), *args])
        assert raised.value.code == 2
        assert message in capsys.readouterr().err
