"""torchvision's ResNet-18, as an example of a model that was written for torch.nn."""

from types import ModuleType

from torch import nn
from torch.nn import Module

import manual_ops
from models.shape import image_shape


def resnet18(layers: ModuleType, input_shape: tuple[int, ...], num_classes: int) -> Module:
    """Build torchvision's ResNet-18 with random weights and, for manual layers, convert it.

    Only the number of input channels and of classes is fitted to the data. Its stem divides
    height and width by 4 at once: made for photographs, it sees little of images of 32x32.

    Args:
        layers: Namespace of the layers; with ``manual_ops.nn`` the finished model is converted.
        input_shape: ``(channels, height, width)`` of an image of any size.
        num_classes: Number of logits.

    Reference:
        He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, 2016.
    """
    from torchvision.models import resnet18 as build  # imports for over a second

    channels, _, _ = image_shape("resnet18", input_shape)
    model: Module = build(num_classes=num_classes)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if layers is manual_ops.nn:
        manual_ops.convert(model, inplace=True)
    return model
