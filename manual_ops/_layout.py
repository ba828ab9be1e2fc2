"""Memory format of gradients: the input's, as torch.nn gives it."""

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
