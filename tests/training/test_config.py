"""Settings: checks, recipes, the command line and the YAML file."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml

import models
from training.cli import parse_args
from training.config import Config, DatasetName, ModelName
from training.recipes import DEFAULT_MODEL, recipe


class TestChecks:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epochs": 0}, "--epochs must be at least 1, got 0"),
            ({"batch_size": 0}, "--batch-size must be at least 1"),
            ({"limit_train": 0}, "--limit-train must be at least 1"),
            ({"threads": 0}, "--threads must be at least 1"),
            ({"hidden": (3, 0)}, "--hidden needs sizes of at least 1"),
            ({"lr": 0.0}, "--lr must be a positive number, got 0.0"),
            ({"lr": -1.0}, "--lr must be a positive number"),
            ({"lr": float("nan")}, "--lr must be finite, got nan"),
            ({"lr": float("inf")}, "--lr must be finite, got inf"),
            ({"seed": -1}, "--seed must lie in"),
            ({"seed": 2**63}, "--seed must lie in"),
            ({"validation": 0.0}, "--validation must lie between 0 and 1"),
            ({"validation": 1.0}, "--validation must lie between 0 and 1"),
            ({"momentum": 1.0}, r"--momentum must lie in \[0, 1\)"),
            ({"dropout": -0.1}, r"--dropout must lie in \[0, 1\)"),
            ({"label_smoothing": 1.5}, r"--label-smoothing must lie in \[0, 1\)"),
            ({"weight_decay": -1.0}, "--weight-decay must not be negative"),
            ({"weight_decay": float("nan")}, "--weight-decay must be finite"),
            ({"nesterov": True}, "--nesterov needs --optimizer sgd"),
            ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "--momentum above 0"),
            ({"amsgrad": True, "optimizer": "sgd"}, "--amsgrad needs --optimizer adam"),
            ({"warmup": 1.0}, r"--warmup must lie in \[0, 1\)"),
            ({"warmup": 0.1}, "--warmup needs another --schedule"),
            ({"ema": 1.0}, r"--ema must lie in \[0, 1\)"),
            ({"bias_lr": 0.0}, "--bias-lr must be a positive number"),
            ({"clip_norm": 0.0}, "--clip-norm must be a positive number"),
            ({"width": -1.0}, "--width must be a positive number"),
            ({"patience": 0}, "--patience must be at least 1"),
            ({"cutout": -1}, "--cutout must not be negative"),
            ({"mixup": -0.1}, "--mixup must not be negative"),
            ({"optimizer": "muon", "weight_decay": 0.1}, "--optimizer muon fixes the lengths"),
            ({"image_size": 8}, "--image-size needs --dataset folder"),
        ],
    )
    def test_bad_settings_are_refused_with_the_remedy(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Config(**settings)

    def test_settings_do_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Config().epochs = 3


class TestRecipes:
    @pytest.mark.parametrize("model", get_args(ModelName))
    @pytest.mark.parametrize("dataset", get_args(DatasetName))
    def test_every_pair_is_complete_and_valid(self, dataset, model):
        config = recipe(dataset, model)
        assert (config.dataset, config.model) == (dataset, model)

    def test_every_data_set_has_a_usual_model(self):
        assert {recipe(name).model for name in get_args(DatasetName)} == set(DEFAULT_MODEL.values())

    def test_model_names_are_those_of_the_models(self):
        assert set(get_args(ModelName)) == set(models.MODELS)

    def test_presets_of_the_mlp(self):
        assert recipe("mnist", "mlp").hidden == (300,)
        assert recipe("mnist", "mlp").activation == "sigmoid"
        preset = recipe("cifar10", "mlp")
        assert preset.hidden == (1000, 500, 200, 100, 100)
        assert (preset.activation, preset.negative_slope) == ("leaky_relu", 0.002)

    def test_digits_are_never_mirrored(self):
        for name in ("digits", "mnist"):
            for model in get_args(ModelName):
                settings = recipe(name, model)
                assert not settings.flip
                assert not settings.test_flip


class TestCommandLine:
    def test_without_arguments_it_is_the_recipe_for_digits(self):
        assert parse_args([]) == recipe("digits")

    def test_dataset_and_model_choose_the_defaults(self):
        assert parse_args(["--dataset", "mnist", "--model=mlp"]) == recipe("mnist", "mlp")

    def test_flags_override_the_recipe(self):
        arguments = "--dataset mnist --lr 0.5 --no-augment --hidden 3 4 --epochs 2"
        config = parse_args(arguments.split(" "))
        assert config == dataclasses.replace(
            recipe("mnist"), lr=0.5, augment=False, hidden=(3, 4), epochs=2
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--model lenet", "'lenet'"),
            ("--dataset imagenet", "'imagenet'"),
            ("--learning-rate 1", "--learning-rate"),
            ("--epochs", "--epochs"),
            ("--epochs many", "many"),
            ("--epochs 0", "--epochs must be at least 1, got 0"),
            ("--lr -1", "--lr must be a positive number"),
            ("--dataset", "--dataset"),
        ],
    )
    def test_mistakes_end_with_code_2_and_name_the_flag(self, arguments, message, capsys):
        with pytest.raises(SystemExit) as raised:
            parse_args(arguments.split())
        assert raised.value.code == 2
        assert message in capsys.readouterr().err

    def test_every_setting_is_described_in_the_help(self, capsys):
        with pytest.raises(SystemExit) as raised:
            parse_args(["--dataset", "cifar10", "--help"])
        assert raised.value.code == 0
        text = capsys.readouterr().out
        for field in dataclasses.fields(Config):
            assert "--" + field.name.replace("_", "-") in text
        assert "cifar-cnn" in text

    def test_the_flags_are_these(self):
        """Renaming or dropping a flag breaks people's scripts: change this list knowingly."""
        assert {field.name for field in dataclasses.fields(Config)} == {
            "dataset", "data_dir", "image_size", "limit_train", "validation", "augment",
            "crop_padding", "flip", "cutout", "mixup", "test_flip", "model", "hidden", "activation",
            "negative_slope", "width", "batch_norm", "dropout", "backend", "epochs",
            "batch_size", "optimizer", "lr", "bias_lr", "schedule", "warmup", "clip_norm",
            "momentum", "nesterov", "amsgrad", "weight_decay", "label_smoothing", "ema",
            "patience", "select", "device", "threads", "seed", "compile", "precision", "run_dir",
            "tensorboard", "report", "config", "resume", "checkpoint_every", "sync_batch_norm",
        }  # fmt: skip


class TestFile:
    @pytest.mark.parametrize(
        "config",
        [
            recipe("digits"),
            recipe("cifar10", "mlp"),
            Config(hidden=(), lr=1e-5, limit_train=7, flip=False, data_dir=Path("a b/c")),
        ],
        ids=["digits", "cifar10-mlp", "others"],
    )
    def test_settings_survive_a_round_trip(self, config, tmp_path):
        config.save(tmp_path / "config.yaml")
        read = parse_args(["--config", str(tmp_path / "config.yaml")])
        assert dataclasses.replace(read, config=None) == config

    def test_every_setting_is_written(self, tmp_path):
        Config().save(tmp_path / "config.yaml")
        written = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert list(written) == [field.name for field in dataclasses.fields(Config)]

    def test_flags_override_the_file(self, tmp_path):
        recipe("mnist", "mlp").save(tmp_path / "config.yaml")
        config = parse_args(["--config", str(tmp_path / "config.yaml"), "--hidden", "7"])
        assert (config.dataset, config.model, config.hidden) == ("mnist", "mlp", (7,))

    def test_options_that_another_model_lacks_are_left_out(self, tmp_path):
        path = str(tmp_path / "config.yaml")
        recipe("cifar10", "mlp").save(tmp_path / "config.yaml")
        config = parse_args(["--config", path, "--model", "vgg"])
        assert (config.hidden, config.activation, config.negative_slope) == ((), "relu", 0.01)
        assert (config.batch_norm, config.lr) == (True, 0.003)
        config = parse_args(["--config", path, "--model", "vgg", "--hidden", "7"])
        assert config.hidden == (7,)  # asked for: the model will refuse it
        assert parse_args(["--config", path, "--model", "mlp"]).hidden == (1000, 500, 200, 100, 100)

    def test_a_repeated_run_gets_a_folder_of_its_own(self, tmp_path):
        Config(run_dir=tmp_path).save(tmp_path / "config.yaml")
        assert parse_args(["--config", str(tmp_path / "config.yaml")]).run_dir is None

    def test_missing_settings_come_from_the_recipe(self, tmp_path):
        (tmp_path / "config.yaml").write_text("dataset: moons\nepochs: 3\n")
        config = parse_args(["--config", str(tmp_path / "config.yaml")])
        assert dataclasses.replace(config, config=None) == dataclasses.replace(
            recipe("moons"), epochs=3
        )

    @pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "epochs: [1\n", "\x00"])
    def test_what_holds_no_settings_is_refused(self, text, tmp_path):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            parse_args(["--config", str(tmp_path / "config.yaml")])

    @pytest.mark.parametrize("text", ["epoch: 3\n", "epochs: ten\n", "epochs: 0\n"])
    def test_wrong_settings_are_refused_like_wrong_flags(self, text, tmp_path, capsys):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(SystemExit) as raised:
            parse_args(["--config", str(tmp_path / "config.yaml")])
        assert raised.value.code == 2
        assert "epoch" in capsys.readouterr().err

    def test_an_absent_file_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            parse_args(["--config", str(tmp_path / "none.yaml")])
