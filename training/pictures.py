"""Pictures made of pixels: tiles of training images and of a first layer's kernels."""

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import interpolate, pad

from training.inputs import Inputs

KERNELS = 64  # at most so many in a picture


def samples(inputs: Tensor) -> Tensor:
    """Return a picture of a batch's first images.

    Args:
        inputs: ``(N, C, H, W)`` uint8.

    Returns:
        ``(3 or 1, height, width)`` uint8.
    """
    return grid(inputs[:32] / 255, columns=8)


def kernels(model: Module, inputs: Inputs) -> Tensor:
    """Return a picture of the first layer's kernels; see ``kernel_images``.

    Args:
        model: A model of images.
        inputs: What it is fed.

    Returns:
        ``(3 or 1, height, width)`` uint8.
    """
    return grid(kernel_images(model, inputs), columns=8)


def kernel_images(model: Module, inputs: Inputs) -> Tensor:
    """Return the first layer's kernels as images.

    Kernels over three channels become colour images, others one grey image for each channel:
    zero is mid-grey, and each kernel is scaled to its largest weight. The rows of a linear layer
    get the shape of the image they multiply.

    Args:
        model: A model of images.
        inputs: What it is fed.

    Returns:
        ``(N, 3 or 1, height, width)`` with values from 0 to 1; at most 64.
    """
    weight = next(p for p in model.parameters() if p.ndim > 1).detach().float()
    if weight.ndim == 2:
        weight = weight.unflatten(1, inputs.input_shape)
    if weight.shape[1] != 3:
        weight = weight.flatten(0, 1).unsqueeze(1)
    weight = weight[:KERNELS]
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    return 0.5 + 0.5 * weight / largest


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile images into one picture, enlarged to at least 48 pixels each.

    Args:
        images: ``(N, C, H, W)`` with values from 0 to 1; only the first of ``C`` channels is
            shown unless ``C`` is 3.
        columns: Images in a row.

    Returns:
        ``(3 or 1, height, width)`` uint8 on the CPU.
    """
    if images.shape[1] != 3:
        images = images[:, :1]
    images = interpolate(images.cpu(), scale_factor=float(-(-48 // images.shape[-1])))
    images = pad(images, (2, 2, 2, 2), value=1.0)
    columns = min(columns, len(images))
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, C, H, W)
    picture: Tensor = rows.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
    return (picture * 255).round().to(torch.uint8)
