"""Random changes of whole batches of images, on their device."""

import torch
from torch import Tensor
from torch.nn.functional import pad


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
