"""Small convolutional networks for MNIST, Fashion-MNIST and CIFAR-10."""

from collections import OrderedDict
from types import ModuleType

from torch.nn import Module

from models.shape import image_shape


def mnist_cnn(layers: ModuleType, input_shape: tuple[int, ...], num_classes: int) -> Module:
    """Build two blocks of ``conv 16x5x5 - relu - max-pool 2``, then a linear layer.

    On 1x28x28 images and 10 classes it has 14,682 parameters.

    Args:
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: ``(channels, height, width)`` of an image, at least 4x4.
        num_classes: Number of logits.
    """
    channels, height, width = image_shape("mnist-cnn", input_shape, smallest=4)
    model: Module = layers.Sequential(
        OrderedDict(
            conv1=layers.Conv2d(channels, 16, 5, padding=2),
            relu1=layers.ReLU(),
            pool1=layers.MaxPool2d(2),
            conv2=layers.Conv2d(16, 16, 5, padding=2),
            relu2=layers.ReLU(),
            pool2=layers.MaxPool2d(2),
            flatten=layers.Flatten(),
            output=layers.Linear(16 * (height // 4) * (width // 4), num_classes),
        )
    )
    return model


def cifar_cnn(layers: ModuleType, input_shape: tuple[int, ...], num_classes: int) -> Module:
    """Build three blocks of ``conv 3x3 - relu - max-pool 2``, a hidden layer, a linear layer.

    On 3x32x32 images and 10 classes it has 288,554 parameters.

    Args:
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: ``(channels, height, width)`` of an image, at least 8x8.
        num_classes: Number of logits.
    """
    channels, height, width = image_shape("cifar-cnn", input_shape, smallest=8)
    model: Module = layers.Sequential(
        OrderedDict(
            conv1=layers.Conv2d(channels, 16, 3, padding=1),
            relu1=layers.ReLU(),
            pool1=layers.MaxPool2d(2),
            conv2=layers.Conv2d(16, 32, 3, padding=1),
            relu2=layers.ReLU(),
            pool2=layers.MaxPool2d(2),
            conv3=layers.Conv2d(32, 64, 3, padding=1),
            relu3=layers.ReLU(),
            pool3=layers.MaxPool2d(2),
            flatten=layers.Flatten(),
            linear=layers.Linear(64 * (height // 8) * (width // 8), 256),
            relu4=layers.ReLU(),
            output=layers.Linear(256, num_classes),
        )
    )
    return model


def fashion_cnn(
    layers: ModuleType,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    batch_norm: bool = True,
    dropout: float = 0.1,
) -> Module:
    """Build three blocks of ``conv 3x3 - max-pool 2 - [batch norm] - relu``, then an mlp.

    The blocks have 24, 48 and 96 channels, the mlp a hidden layer of 128. Max-pooling comes
    before relu, with which it commutes, and before batch norm, so that both work on a quarter of
    the pixels.

    Args:
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: ``(channels, height, width)`` of an image, at least 8x8.
        num_classes: Number of logits.
        batch_norm: Whether to normalise after each convolution.
        dropout: Probability of zeroing an input of the mlp, or of its output layer.
    """
    channels, height, width = image_shape("fashion-cnn", input_shape, smallest=8)
    modules: OrderedDict[str, Module] = OrderedDict()
    for i, size in enumerate((24, 48, 96), start=1):
        modules[f"conv{i}"] = layers.Conv2d(channels, size, 3, padding=1)
        modules[f"pool{i}"] = layers.MaxPool2d(2)
        if batch_norm:
            modules[f"norm{i}"] = layers.BatchNorm2d(size)
        modules[f"relu{i}"] = layers.ReLU()
        channels = size
    modules["flatten"] = layers.Flatten()
    if dropout:
        modules["dropout1"] = layers.Dropout(dropout)
    modules["linear"] = layers.Linear(channels * (height // 8) * (width // 8), 128)
    modules["relu4"] = layers.ReLU()
    if dropout:
        modules["dropout2"] = layers.Dropout(dropout)
    modules["output"] = layers.Linear(128, num_classes)
    model: Module = layers.Sequential(modules)
    return model
