"""A trained model from the folder of its run."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from training import report, tensor_file
from training.cli import parse_args
from training.config import Config
from training.inputs import Inputs, load_inputs
from training.run_folder import CONFIG, INPUTS, WEIGHTS
from training.setup import LAYERS, MOST_THREADS, build_model, pick_device


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a run left.

    Attributes:
        config: Its settings, but for the device.
        inputs: What the model was trained on.
        model: The model with the weights that were kept.
        metrics: Contents of metrics.json; empty if the run did not get to its end.
    """

    config: Config
    inputs: Inputs
    model: Module
    metrics: dict[str, Any]


def restore(run_dir: Path, device: str = "auto") -> Trained:
    """Rebuild the model of the run in ``run_dir``.

    Args:
        run_dir: Folder of the run.
        device: Where to put the model, as for ``--device``.

    Raises:
        ValueError: It is no folder of a run, a file in it is damaged, or there is no such device.
        OSError: A file cannot be read.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder; name that of a run, such as runs/NAME")
    for name in (CONFIG, INPUTS):
        if not (run_dir / name).exists():
            raise ValueError(f"{run_dir} is not the folder of a run: it has no {name}")
    if not (run_dir / WEIGHTS).exists():
        raise ValueError(f"{run_dir} has no {WEIGHTS}: the run did not get through an epoch")
    config = _read_config(run_dir / CONFIG, device)
    inputs = load_inputs(run_dir / INPUTS, _pick_device(config))
    model = build_model(config, inputs, LAYERS[config.backend])
    _load_weights(model, run_dir / WEIGHTS, inputs.device)
    return Trained(config, inputs, model.eval(), report.read(run_dir))


def _read_config(path: Path, device: str) -> Config:
    try:
        return parse_args(["--config", str(path), "--device", device])
    except SystemExit as error:  # the parser has said which setting
        raise ValueError(f"{path} holds settings that do not exist here") from error


def _pick_device(config: Config) -> torch.device:
    """Return the device of ``config``, which may lack what the run was trained with."""
    cuda = config.device != "cpu" and torch.cuda.is_available()
    if config.precision == "tf32" and not cuda:
        config = dataclasses.replace(config, precision="float32")
    if config.threads is not None:
        config = dataclasses.replace(config, threads=min(config.threads, MOST_THREADS))
    return pick_device(config)


def _load_weights(model: Module, path: Path, device: torch.device) -> None:
    weights = tensor_file.read(path, device)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit the model of config.yaml beside it") from error
