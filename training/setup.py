"""The device and the model that settings ask for."""

import os
import textwrap
from types import ModuleType

import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

import manual_ops.nn
import models
from training import parallel
from training.config import Config, flag
from training.data import Data
from training.inputs import Inputs

LAYERS: dict[str, ModuleType] = {"manual": manual_ops.nn, "torch": torch.nn}

MOST_THREADS = 16 * (os.cpu_count() or 1)  # thousands fail to start

# Settings of models; one that a model does not have must keep its default.
MODEL_OPTIONS = ("hidden", "activation", "negative_slope", "batch_norm", "dropout", "width")


def pick_device(config: Config) -> torch.device:
    """Return the device to train on, set up as ``config`` asks.

    Raises:
        ValueError: There is no such device here.
    """
    if config.threads is not None:
        if config.threads > MOST_THREADS:
            raise ValueError(
                f"--threads must be at most {MOST_THREADS} on this machine, got {config.threads}"
            )
        torch.set_num_threads(config.threads)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = parallel.local_device(name)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {name} is not available here ({textwrap.shorten(str(error), 160)}). "
            "Use --device cpu, or auto"
        ) from error
    cuda = device.type == "cuda"
    if config.precision == "bfloat16" and cuda and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{name} has no bfloat16. Use --precision float32, or tf32")
    if config.precision == "tf32" and not cuda:
        raise ValueError(f"--precision tf32 needs a CUDA device, not {name}")
    # PyTorch rounds to tf32 in convolutions unless told otherwise, and in matrix products if asked.
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    if cuda:
        torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same curve
    return device


def check_batch_size(config: Config, data: Data, model: Module) -> None:
    """Refuse to train batch norm on one example at a time, which has no variance.

    Raises:
        ValueError: So ``config`` and ``data`` have it.
    """
    size = min(config.batch_size, len(data.train)) // parallel.count()
    if size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError(
            f"batch norm, which this {config.model} has, needs at least 2 training examples in a "
            "batch of each process: raise --batch-size or --limit-train"
        )


def build_model(config: Config, inputs: Inputs, layers: ModuleType) -> Module:
    """Build the model of ``config`` for ``inputs``, on their device, from the seed.

    Raises:
        ValueError: The model cannot take such inputs, or lacks an option that was set.
    """
    known = models.options(config.model)
    for name in MODEL_OPTIONS:
        if name not in known and getattr(config, name) != getattr(Config(), name):
            raise ValueError(f"{config.model} has no option {flag(name)}")
    if config.sync_batch_norm and layers is torch.nn and inputs.device.type == "cpu":
        raise ValueError("--sync-batch-norm of torch.nn needs a GPU. Use --backend manual")
    choices = {name: getattr(config, name) for name in MODEL_OPTIONS if name in known}
    torch.manual_seed(config.seed)
    model = models.build(config.model, layers, inputs.input_shape, len(inputs.classes), **choices)
    return model.to(inputs.device)
