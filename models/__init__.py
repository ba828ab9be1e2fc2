"""Models by name, built on ``manual_ops.nn`` or ``torch.nn``."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch.nn import Module

from models.cnn import cifar_cnn, fashion_cnn, mnist_cnn
from models.mlp import mlp
from models.resnet import resnet18
from models.speed_resnet import speed_resnet
from models.vgg import vgg

MODELS: dict[str, Callable[..., Module]] = {
    "mlp": mlp,
    "mnist-cnn": mnist_cnn,
    "cifar-cnn": cifar_cnn,
    "fashion-cnn": fashion_cnn,
    "vgg": vgg,
    "resnet18": resnet18,
    "speed-resnet": speed_resnet,
}


def options(name: str) -> tuple[str, ...]:
    """Return the names of the keyword options that the model ``name`` takes."""
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def build(
    name: str,
    layers: ModuleType,
    input_shape: tuple[int, ...],
    num_classes: int,
    **choices: Any,
) -> Module:
    """Build a model; the same seed gives the same initial weights on either layer namespace.

    Args:
        name: Key of ``MODELS``.
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: ``(channels, height, width)`` of an image, or ``(features,)``.
        num_classes: Number of logits.
        **choices: Options of the model, see ``options``.

    Returns:
        A module from ``(N, *input_shape)`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: There is no such model, it has no such option, or cannot take such inputs.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; the models are {', '.join(MODELS)}")
    for choice in choices:
        if choice not in options(name):
            known = ", ".join(options(name)) or "none"
            raise ValueError(f"{name} has no option {choice}; its options: {known}")
    return MODELS[name](layers, input_shape, num_classes, **choices)
