"""Look-up of rows of a table.

Index convention: ``n`` position of the indices t (any number of dims), ``v`` row of the table W,
``d`` its columns.

Forward:   y[n, d]     = W[t[n], d]
Backward:  dL/dW[v, d] = sum_{n: t[n] = v} dL/dy[n, d]
Tangent:   y'[n, d]    = W'[t[n], d]

The function is linear in W, a product with a matrix of one-hot rows; backward is the transpose.
Two settings change the gradient, not the function, to steer what an optimiser does; forward mode
therefore knows neither, as in torch: ``padding_idx`` sets dL/dW to 0 for that row, and
``scale_grad_by_freq`` divides dL/dW[v] by the number of times that v occurs in t.
Source: Bengio et al., A Neural Probabilistic Language Model (2003), section 2.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import may_overwrite
from .._overridable import overridable
from .._precision import widen
from ._refusal import no_tensor


class _Embedding(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor,
        input: Tensor,
        padding_idx: int | None,
        scale_grad_by_freq: bool,
        sparse: bool,
    ) -> Tensor:
        return torch.embedding(weight, input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, input, *ctx.settings = inputs
        ctx.rows = weight.shape[0]
        ctx.save_for_backward(input)
        ctx.save_for_forward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        padding_idx, scale_grad_by_freq, sparse = ctx.settings
        count, columns = math.prod(indices.shape), grad_output.shape[-1]
        index, g = indices.reshape(count), grad_output.reshape(count, columns)
        if sparse:
            if scale_grad_by_freq:
                raise RuntimeError(
                    "embedding: scale_grad_by_freq is not supported with sparse gradients"
                )
            grad_weight = _sparse_gradient(g, index, ctx.rows, padding_idx)
        else:
            grad_weight = _gradient(g, index, ctx.rows, padding_idx, scale_grad_by_freq)
        return grad_weight, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, weight_tangent: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return torch.embedding(weight_tangent, indices)


def _gradient(
    g: Tensor, index: Tensor, rows: int, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    wide = widen(g)
    if scale_grad_by_freq:
        ones = torch.ones_like(index, dtype=wide.dtype)
        frequency = wide.new_zeros(rows).index_add(0, index, ones)
        wide = wide / frequency[index][:, None]
    zeros = wide.new_zeros(rows, g.shape[1])
    index_add = Tensor.index_add_ if may_overwrite(g) else Tensor.index_add
    grad_weight = index_add(zeros, 0, index, wide)
    if padding_idx is not None:
        kept = torch.arange(rows, device=g.device) != padding_idx
        grad_weight = grad_weight.where(kept[:, None], 0)
    return grad_weight.to(g.dtype)


def _sparse_gradient(g: Tensor, index: Tensor, rows: int, padding_idx: int | None) -> Tensor:
    """Return dL/dW as a sparse tensor: an entry for each index, repeated ones not yet added up."""
    if padding_idx is not None:
        kept = index != padding_idx
        index, g = index[kept], g[kept]
    return torch.sparse_coo_tensor(
        index[None], g, (rows, g.shape[1]), check_invariants=False, is_coalesced=False
    )


_embedding = bind(
    _Embedding,
    "input an int64 or int32 tensor with values in [0, weight.shape[0]), weight (V, D)",
)


@overridable(torch.nn.functional.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Look rows of ``weight`` up; drop-in for :func:`torch.nn.functional.embedding`.

    Args:
        input: Indices in [0, V) of any shape ``(*)``, int64 or int32.
        weight: Table ``(V, D)``.
        padding_idx: Row that gets no gradient; negative ones count from the end.
        max_norm: First scale the rows looked up down to this norm, in place in ``weight`` and
            unseen by autograd.
        norm_type: The p of that p-norm.
        scale_grad_by_freq: Divide the gradient of a row by how often it is looked up here.
        sparse: Give the gradient of ``weight`` as a sparse tensor.

    Returns:
        ``(*, D)`` of the dtype of ``weight``.

    Raises:
        AssertionError: ``padding_idx`` outside [-V, V).
        IndexError: An index outside [0, V), on CPU.
        RuntimeError: ``input`` of another dtype; ``weight`` not of two dims; in backward,
            ``sparse`` together with ``scale_grad_by_freq``.
        TypeError: ``input`` or ``weight`` is not a Tensor.
    """
    if not isinstance(weight, Tensor):
        raise no_tensor("embedding", weight=weight)
    if padding_idx is not None:
        rows = weight.shape[0]
        if not -rows <= padding_idx < rows:
            raise AssertionError(
                f"embedding: padding_idx must be within the {rows} rows of weight, "
                f"got {padding_idx}"
            )
        padding_idx %= rows
    if max_norm is not None:
        with torch.no_grad():
            torch.embedding_renorm_(weight.detach(), input.contiguous(), max_norm, norm_type)
    output: Tensor = _embedding(weight, input, padding_idx, scale_grad_by_freq, sparse)
    return output
