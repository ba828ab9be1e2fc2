"""Small VGG with batch normalisation."""

from collections import OrderedDict
from types import ModuleType

from torch.nn import Module

from models.shape import image_shape

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg(
    layers: ModuleType,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    batch_norm: bool = True,
) -> Module:
    """Build eight ``conv 3x3 - [batch norm] - relu``, max-pooled after each stage; then linear.

    The stages have 64, 128, 2x256, 2x512 and 2x512 channels. Each max-pooling has a 3x3 window
    and stride 2, so 32x32 images end as one pixel of 512 channels.

    Args:
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: ``(channels, height, width)`` of an image of any size.
        num_classes: Number of logits.
        batch_norm: Whether to normalise after each convolution.

    Reference:
        Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
        Recognition, 2015 (configuration A).
    """
    channels, height, width = image_shape("vgg", input_shape)
    modules: OrderedDict[str, Module] = OrderedDict()
    for stage, sizes in enumerate(STAGES, start=1):
        for i, size in enumerate(sizes, start=1):
            modules[f"conv{stage}_{i}"] = layers.Conv2d(channels, size, 3, padding=1)
            if batch_norm:
                modules[f"norm{stage}_{i}"] = layers.BatchNorm2d(size)
            modules[f"relu{stage}_{i}"] = layers.ReLU()
            channels = size
        modules[f"pool{stage}"] = layers.MaxPool2d(3, stride=2, padding=1)
        height, width = (height + 1) // 2, (width + 1) // 2
    modules["flatten"] = layers.Flatten()
    modules["output"] = layers.Linear(channels * height * width, num_classes)
    model: Module = layers.Sequential(modules)
    return model
