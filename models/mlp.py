"""Multi-layer perceptron."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import ModuleType

from torch.nn import Module


def mlp(
    layers: ModuleType,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: Sequence[int] = (300,),
    activation: str = "relu",
    negative_slope: float = 0.01,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> Module:
    """Build ``linear - [batch norm] - activation - [dropout]`` per hidden layer, then ``linear``.

    Args:
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: Shape of one input; it is flattened.
        num_classes: Number of logits.
        hidden: Sizes of the hidden layers; none makes it softmax regression.
        activation: ``sigmoid``, ``tanh``, ``relu`` or ``leaky_relu``.
        negative_slope: Slope of ``leaky_relu`` below zero.
        batch_norm: Whether to normalise before each activation.
        dropout: Probability of zeroing an activation.

    Raises:
        ValueError: The activation is not one of these.
    """
    activations: dict[str, Callable[[], Module]] = {
        "sigmoid": layers.Sigmoid,
        "tanh": layers.Tanh,
        "relu": layers.ReLU,
        "leaky_relu": lambda: layers.LeakyReLU(negative_slope),
    }
    if activation not in activations:
        raise ValueError(f"activation must be one of {', '.join(activations)}, got {activation!r}")
    modules: OrderedDict[str, Module] = OrderedDict(flatten=layers.Flatten())
    features = math.prod(input_shape)
    for i, size in enumerate(hidden, start=1):
        modules[f"linear{i}"] = layers.Linear(features, size)
        if batch_norm:
            modules[f"norm{i}"] = layers.BatchNorm1d(size)
        modules[f"{activation}{i}"] = activations[activation]()
        if dropout:
            modules[f"dropout{i}"] = layers.Dropout(dropout)
        features = size
    modules["output"] = layers.Linear(features, num_classes)
    model: Module = layers.Sequential(modules)
    return model
