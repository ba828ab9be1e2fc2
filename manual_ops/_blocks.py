"""Elementwise formulas evaluated block by block."""

from collections.abc import Callable

import torch
from torch import Tensor

from ._layout import is_channels_last

# Elements of a block for each thread: a handful of float32 temporaries stays in the cache, and
# the fixed cost of the calls is still small beside the arithmetic.
_BLOCK = 1 << 17


def by_blocks(
    formula: Callable[..., Tensor], tangent: Tensor, saved: Tensor, *params: object
) -> Tensor:
    """Return ``formula(tangent, saved, *params)``, with temporaries that fit in the cache.

    A chain of eager operations on a large tensor writes each intermediate to memory, in fresh
    pages. That costs several times the arithmetic; here only the result is written.

    Args:
        formula: Elementwise, of plain eager arithmetic.
        tangent: Same shape as ``saved``; the result has its dtype.
        saved: The op's input or output.
        *params: Passed on.
    """
    size = _BLOCK * torch.get_num_threads()
    channels_last = is_channels_last(saved)
    dense = saved.permute(0, 2, 3, 1) if channels_last else saved
    if saved.device.type != "cpu" or saved.numel() <= size or not dense.is_contiguous():
        return formula(tangent, saved, *params)
    dense_tangent = (tangent.permute(0, 2, 3, 1) if channels_last else tangent).contiguous()
    result = torch.empty_like(dense, dtype=tangent.dtype)
    blocks = (x.view(-1).split(size) for x in (result, dense_tangent, dense))
    for block, tangent_block, saved_block in zip(*blocks, strict=True):
        block.copy_(formula(tangent_block, saved_block, *params))
    return result.permute(0, 3, 1, 2) if channels_last else result
