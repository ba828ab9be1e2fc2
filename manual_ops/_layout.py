"""Memory format of gradients: the input's, as torch.nn gives it."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is an image ``(N, C, H, W)`` stored as N, H, W, C, or likewise a volume.

    By its strides: asking for the memory format itself has no rule under vmap.
    """
    return x.dim() in (4, 5) and x.shape[1] > 1 and x.stride(1) == 1 and x.stride(-1) == x.shape[1]


def channels_moved_last(x: Tensor) -> Tensor:
    """Return the view ``(N, *, C)`` of ``x (N, C, *)``."""
    return x.permute(0, *range(2, x.dim()), 1)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` stored as N, H, W, C or contiguously; itself where it is so already."""
    if channels_last:
        moved = channels_moved_last(x).contiguous()
        return moved.permute(0, -1, *range(1, x.dim() - 1))
    return x.contiguous()


def reshaped(output: Tensor, shape: torch.Size) -> Tensor:
    """``output.reshape(shape)``, but no view: a Function's view cannot be changed in place."""
    result: Tensor = torch.ops.aten._unsafe_view(output, shape)
    return result
