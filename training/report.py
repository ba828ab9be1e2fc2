"""What a run leaves behind: metrics.json, the printed summary and pictures for TensorBoard."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import interpolate, pad

from training.atomic import atomic_write
from training.config import Config
from training.data import Data
from training.evaluation import Evaluation

KERNELS = 64  # at most so many in a picture


def heading(config: Config, data: Data, model: Module) -> str:
    """Return the printed description of a run: the data, and the model layer by layer."""
    import torchinfo

    device = data.train.labels.device
    layers = torchinfo.summary(
        model, input_data=data.normalise(data.train.inputs[:1]), mode="eval", verbose=0
    ).summary_list[1:]
    lines = [
        f"{config.dataset}: {len(data.train):,} training, {len(data.validation):,} validation, "
        f"{len(data.test):,} test examples of {len(data.classes)} classes",
        f"{config.model} of {config.backend} layers on {device}:",
    ]
    lines += [
        f"  {layer.var_name:<10} {layer.class_name:<12} {_size(layer.output_size[1:]):<12} "
        f"{f'{layer.num_params:>10,}' if layer.num_params else ''}".rstrip()
        for layer in layers
    ]
    lines.append(f"  {'parameters':<36} {sum(p.numel() for p in model.parameters()):>10,}")
    return "\n".join(lines)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def metrics(
    config: Config,
    data: Data,
    model: Module,
    history: list[dict[str, float]],
    selected: int,
    test: Evaluation,
    seconds: float,
) -> dict[str, Any]:
    """Return the contents of metrics.json: results, what they were measured on, and the history.

    Args:
        config: The settings.
        data: The data set.
        model: The tested model.
        history: Metrics of each epoch.
        selected: Number of the epoch whose weights were tested.
        test: Result on the test set.
        seconds: Time from reading the settings to the test.
    """
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "per_class_accuracy": dict(zip(data.classes, test.per_class, strict=True)),
        "validation_accuracy": history[selected - 1]["accuracy/validation"],
        "selected_epoch": selected,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": config.epochs,
        "seconds": seconds,
        "images_per_second": fmean(epoch["speed/images_per_second"] for epoch in history),
        "dataset": config.dataset,
        "model": config.model,
        "backend": config.backend,
        "device": str(data.train.labels.device),
        "torch": torch.__version__,
        "mean": data.mean.flatten().tolist(),
        "std": data.std.flatten().tolist(),
        "history": history,
    }


def write(run_dir: Path, metrics: dict[str, Any], data: Data, model: Module) -> None:
    """Write metrics.json and, if the model sees images, kernels.png into ``run_dir``."""
    with atomic_write(run_dir / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=2, allow_nan=False).encode() + b"\n")
    if data.has_images:
        with atomic_write(run_dir / "kernels.png") as file:
            picture = kernels(model, data).permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(file, format="png")


def summary(metrics: dict[str, Any]) -> str:
    """Return the printed result: accuracy class by class and overall, loss and speed."""
    per_class = metrics["per_class_accuracy"]
    width = max(map(len, ["test set", *per_class]))
    lines = [
        f"{name:<{width}}  {'no examples' if accuracy is None else f'{accuracy:8.2%}'}"
        for name, accuracy in per_class.items()
    ]
    return "\n".join(
        [
            "",
            *lines,
            f"{'test set':<{width}}  {metrics['test_accuracy']:8.2%}  "
            f"loss {metrics['test_loss']:.4f}  (weights of epoch {metrics['selected_epoch']})",
            f"{metrics['seconds']:.1f} s, {metrics['images_per_second']:,.0f} images/s",
        ]
    )


def gradient_norms(model: Module) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of each layer that has parameters."""
    norms = {
        f"norm/gradient/{name}": torch.stack([p.grad.norm() for p in layer_parameters]).norm()
        for name, layer in model.named_modules()
        if (layer_parameters := [p for p in layer.parameters(recurse=False) if p.grad is not None])
    }
    values = torch.stack(list(norms.values())).tolist()  # one transfer from the device
    return dict(zip(norms, values, strict=True))


def samples(inputs: Tensor) -> Tensor:
    """Return a picture of a batch's first images.

    Args:
        inputs: ``(N, C, H, W)`` uint8.

    Returns:
        ``(3, height, width)`` uint8.
    """
    return grid(inputs[:32] / 255, columns=8)


def kernels(model: Module, data: Data) -> Tensor:
    """Return a picture of the first layer's kernels.

    Kernels over three channels are shown in colour, others channel by channel in grey: zero is
    mid-grey, and each kernel is scaled to its largest weight. The rows of a linear layer are
    shown in the shape of the image they multiply.

    Args:
        model: A model of images.
        data: Its data set.

    Returns:
        ``(3, height, width)`` uint8.
    """
    weight = next(p for p in model.parameters() if p.ndim > 1).detach().float()
    if weight.ndim == 2:
        weight = weight.unflatten(1, data.input_shape)
    if weight.shape[1] != 3:
        weight = weight.flatten(0, 1).unsqueeze(1)
    weight = weight[:KERNELS]
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    return grid(0.5 + 0.5 * weight / largest, columns=8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile images into one picture, enlarged to at least 48 pixels each.

    Args:
        images: ``(N, C, H, W)`` with values from 0 to 1; only the first of ``C`` channels is
            shown unless ``C`` is 3.
        columns: Images in a row.

    Returns:
        ``(3, height, width)`` uint8 on the CPU.
    """
    if images.shape[1] != 3:
        images = images[:, :1].expand(-1, 3, -1, -1)
    images = interpolate(images.cpu(), scale_factor=float(-(-48 // images.shape[-1])))
    images = pad(images, (2, 2, 2, 2), value=1.0)
    columns = min(columns, len(images))
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, 3, H, W)
    picture: Tensor = rows.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
    return (picture * 255).round().to(torch.uint8)
