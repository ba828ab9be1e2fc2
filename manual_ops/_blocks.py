"""Formulas evaluated block by block, so that their temporaries stay in the cache."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ._layout import channels_moved_last, is_channels_last

# Elements of a block for each thread: a handful of float32 temporaries stays in the cache, and
# the fixed cost of the calls is still small beside the arithmetic.
_BLOCK = 1 << 18


def block_length(x: Tensor) -> int:
    """Return how many slices of ``x`` along dim 0 make a block; all of them on an accelerator."""
    slices = max(x.shape[0], 1)
    if x.numel() <= _BLOCK or not x.is_cpu:
        return slices
    return max(_BLOCK * torch.get_num_threads() * slices // x.numel(), 1)


def blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Split tensors of one shape along dim 0 into blocks, and return each block of all of them."""
    length = block_length(tensors[0])
    if length >= tensors[0].shape[0]:
        return [tensors]
    return zip(*(tensor.split(length) for tensor in tensors), strict=True)


def sum_of_rows(x: Tensor) -> Tensor:
    """Return ``x.sum(0)``; compiled for CPU, by way of the sums of 64 rows each.

    A compiled sum goes down the columns one after the other, the width of a vector at a time. Of
    64 rows, what it skips of each line of the cache is still there for the next columns.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # Brings in sympy, which the compiler has loaded by now; so not with the package.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        if statically_known_true(x.shape[0] % 64 == 0):
            x = x.unflatten(0, (-1, 64)).sum(1)
    return x.sum(0)


def blockwise(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate an elementwise formula block by block where the tensors are large and on CPU.

    A chain of eager operations on a large tensor writes each intermediate to memory, which costs
    several times the arithmetic; by blocks only the result is written. Pays from about four
    passes on.

    Args:
        formula: ``(tangent, saved, *params, out) -> out`` of one shape and dtype, for plain eager
            code; works in ``out`` and leaves the result there. ``out`` has the layout of
            ``saved``.
    """

    @functools.wraps(formula)
    def by_blocks(tangent: Tensor, saved: Tensor, *params: object, out: Tensor) -> Tensor:
        if saved.numel() <= _BLOCK or not saved.is_cpu:
            return formula(tangent, saved, *params, out=out)
        dense = [out, tangent, saved]
        if is_channels_last(saved):
            dense = [channels_moved_last(x) for x in dense]
        if not dense[2].is_contiguous():
            return formula(tangent, saved, *params, out=out)
        flat = [x.contiguous().view(-1) for x in dense]
        length = block_length(flat[0])
        for out_block, *blocks in zip(*(x.split(length) for x in flat), strict=True):
            formula(*blocks, *params, out=out_block)
        return out

    return by_blocks
