"""Formulas evaluated block by block, so that their temporaries stay in the cache."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

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


def blockwise(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate an elementwise formula block by block where the tensors are large and on CPU.

    A chain of eager operations on a large tensor writes each intermediate to memory, which costs
    several times the arithmetic; by blocks only the result is written.

    Args:
        formula: ``(tangent, saved, *params, out) -> out``, for plain eager code: elementwise, on
            tensors of one shape and dtype; ``out`` is where it works and leaves the result.
    """

    @functools.wraps(formula)
    def by_blocks(tangent: Tensor, saved: Tensor, *params: object) -> Tensor:
        result = torch.empty_like(saved)
        tensors = (result, tangent, saved)
        if saved.numel() > _BLOCK and saved.device.type == "cpu":
            if is_channels_last(saved):
                tensors = tuple(x.permute(0, 2, 3, 1) for x in tensors)
            if tensors[-1].is_contiguous():
                flat = [x.contiguous().view(-1) for x in tensors]
                length = block_length(flat[0])
                for out, *block in zip(*(x.split(length) for x in flat), strict=True):
                    formula(*block, *params, out=out)
                return result
        return formula(tangent, saved, *params, out=result)

    return by_blocks
