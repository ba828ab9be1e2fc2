"""Random changes of whole batches of images, on their device."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``padding`` pixels each way; what enters is black.

    The same as padding every image with zeros and cutting its old size out at a random place.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        padding: Largest shift, at least 0.
        generator: Source of the shifts, on the device of ``images``.

    Returns:
        New images of the same shape and dtype.
    """
    count, _, height, width = images.shape
    places = 2 * padding + 1
    corner = torch.randint(places, (2, count), generator=generator, device=images.device)
    # A view of every possible crop, of which one gather copies the chosen ones.
    crops = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(count, device=images.device), :, corner[0], corner[1]]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        generator: Source of the choices, on the device of ``images``.

    Returns:
        New images of the same shape and dtype.
    """
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=images.device)
    return torch.where(flipped.bool(), images.flip(-1), images)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Black out a square of each image, around a random pixel; what lies outside is lost.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        size: Height and width of the square in pixels, at least 0.
        generator: Source of the places, on the device of ``images``.

    Returns:
        New images of the same shape and dtype.

    Reference:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
        2017.
    """
    count, _, height, width = images.shape
    row, column = (
        _inside_square(length, count, size, generator, images.device) for length in (height, width)
    )
    return images * ~(row[:, None, :, None] & column[:, None, None, :])


def _inside_square(
    length: int, count: int, size: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Return ``(count, length)`` bool: ``size`` places in a row, around a random one of them."""
    centre = torch.randint(length, (count, 1), generator=generator, device=device)
    offset = torch.arange(length, device=device) - (centre - size // 2)
    return (offset >= 0) & (offset < size)


def mixup(
    inputs: Tensor, labels: Tensor, classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each example with its neighbour in the batch, and the labels in the same proportion.

    An example keeps the share λ, drawn for each from Beta(α, α); small α leave most examples
    nearly pure, α = 1 makes every share as likely.

    Args:
        inputs: ``(N, *)``, a batch in random order.
        labels: ``(N,)`` int64 class indices.
        classes: Number of classes.
        alpha: α, above 0.
        generator: Source of the shares, on the device of ``inputs``.

    Returns:
        ``(N, *)`` inputs and ``(N, classes)`` probabilities, both in torch's default float type.

    Reference:
        Zhang, Cisse, Dauphin and Lopez-Paz, mixup: Beyond Empirical Risk Minimization, 2018.
    """
    # PyTorch's Beta takes no generator of its own.
    seed = torch.randint(2**62, (), generator=generator, device=inputs.device).item()
    draws = np.random.default_rng(int(seed)).beta(alpha, alpha, len(labels))
    share = torch.tensor(draws, dtype=torch.get_default_dtype(), device=inputs.device)

    def mix(values: Tensor) -> Tensor:
        values = values.to(share.dtype)
        return torch.lerp(values.roll(1, 0), values, share.view(-1, *(1,) * (values.ndim - 1)))

    return mix(inputs), mix(one_hot(labels, classes))
