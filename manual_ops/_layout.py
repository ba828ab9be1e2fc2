"""Memory format of gradients: the input's, as torch.nn gives it."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is an ``(N, C, H, W)`` image stored as N, H, W, C.

    By its strides: asking for the memory format itself has no rule under vmap.
    """
    return x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` stored as N, H, W, C or contiguously; itself where it is so already."""
    if channels_last:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous()


def reshaped(output: Tensor, shape: torch.Size) -> Tensor:
    """``output.reshape(shape)``, but no view: a Function's view cannot be changed in place."""
    result: Tensor = torch.ops.aten._unsafe_view(output, shape)
    return result
