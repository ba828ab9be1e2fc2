"""Settings from the command line: recipe, then file, then flags."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import tyro
import yaml

import models
from training.config import Config, DatasetName, ModelName, words
from training.recipes import recipe
from training.run_folder import CONFIG
from training.setup import MODEL_OPTIONS


def parse_args(args: Sequence[str]) -> Config:
    """Read the settings from command-line arguments.

    Defaults come from the recipe of the data set and model; a file named by ``--config``, or that
    of the run named by ``--resume``, goes before them, flags before both.

    Args:
        args: Arguments without the program's name.

    Returns:
        The settings, all of them resolved.

    Raises:
        ValueError: The file does not hold settings, or there is no run to resume.
        OSError: It cannot be read.
        SystemExit: An argument is wrong (code 2, message printed), or ``--help`` was asked.
    """
    chosen = _peek(args)
    path = chosen.config
    if chosen.resume is not None:
        path = Path(chosen.resume, CONFIG)
        if not path.exists():
            raise ValueError(f"there is no run to resume in {chosen.resume}: {path} is missing")
    if path is not None:
        # A file of settings is the same flags, written down: one parser checks both.
        args = [*_flags_of(Path(path), chosen.model), *args]
        chosen = _peek(args)
    return tyro.cli(
        Config,
        args=args,
        default=recipe(chosen.dataset, chosen.model),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _peek(args: Sequence[str]) -> argparse.Namespace:
    """Read the flags that choose the defaults of the others; mistakes are left to the parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--dataset", "--model", "--config", "--resume"):
        parser.add_argument(name, nargs="?")
    chosen = parser.parse_known_args(args)[0]
    if chosen.dataset not in get_args(DatasetName):
        chosen.dataset = Config().dataset
    if chosen.model not in get_args(ModelName):
        chosen.model = None
    return chosen


def _flags_of(path: Path, model: ModelName | None) -> list[str]:
    """Return the settings of a YAML file as command-line arguments.

    Args:
        path: The file.
        model: What is to be trained instead of the file's model: options that it lacks are left
            out.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings: expected lines of the form 'epochs: 10'")
    arguments: list[str] = []
    for name, value in settings.items():
        if name in ("config", "run_dir", "resume"):
            continue  # a repeated run gets a folder of its own
        if model and name in MODEL_OPTIONS and name not in models.options(model):
            continue
        arguments += words(name, value)
    return arguments
