"""Formulas evaluated block by block, so that their temporaries stay in the cache."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ._apply import may_overwrite
from ._layout import is_channels_last

# Elements of a block for each thread: a handful of float32 temporaries stays in the cache, and
# the fixed cost of the calls is still small beside the arithmetic.
_BLOCK = 1 << 18


def block_length(x: Tensor) -> int:
    """Return how many slices of ``x`` along dim 0 make a block; all of them on an accelerator."""
    if x.device.type != "cpu":
        return max(len(x), 1)
    slice_size = max(x.numel() // max(len(x), 1), 1)
    return max(_BLOCK * torch.get_num_threads() // slice_size, 1)


def blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Split tensors of one shape along dim 0 into blocks, and return each block of all of them."""
    length = block_length(tensors[0])
    if length >= len(tensors[0]):
        return [tensors]
    return zip(*(tensor.split(length) for tensor in tensors), strict=True)


def blockwise(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate an elementwise formula block by block where plain eager code runs it on CPU.

    A chain of eager operations on a large tensor writes each intermediate to memory, in fresh
    pages, which costs several times the arithmetic; by blocks only the result is written. Pays
    where there are several temporaries.

    Args:
        formula: ``(tangent, saved, *params, out=None) -> result`` of the dtype of ``tangent``,
            elementwise; ``out`` is where the result has to be written by the last operation.
    """

    @functools.wraps(formula)
    def by_blocks(tangent: Tensor, saved: Tensor, *params: object) -> Tensor:
        channels_last = is_channels_last(saved)
        dense = saved.permute(0, 2, 3, 1) if channels_last else saved
        same_layout = dense.is_contiguous() and not (channels_last and tangent.is_contiguous())
        if not may_overwrite(tangent) or not same_layout:
            return formula(tangent, saved, *params)
        length = block_length(dense.view(-1))
        if saved.numel() <= length:
            return formula(tangent, saved, *params)
        dense_tangent = (tangent.permute(0, 2, 3, 1) if channels_last else tangent).contiguous()
        result = torch.empty_like(dense, dtype=tangent.dtype)
        blocks = (x.view(-1).split(length) for x in (result, dense_tangent, dense))
        for block, tangent_block, saved_block in zip(*blocks, strict=True):
            formula(tangent_block, saved_block, *params, out=block)
        return result.permute(0, 3, 1, 2) if channels_last else result

    return by_blocks
