"""Affine map.

Index convention: ``*`` leading (batch) dims, ``i`` in-features, ``o`` out-features.

Forward:   y[*, o]     = sum_i x[*, i] W[o, i] + b[o]
Backward:  dL/dx[*, i] = sum_o dL/dy[*, o] conj W[o, i]
           dL/dW[o, i] = sum_* dL/dy[*, o] conj x[*, i]
           dL/db[o]    = sum_* dL/dy[*, o]
Tangent:   y'          = x' W^T + x W'^T + b'

Each line of Backward is the chain rule with dy[*, o]/dx[*, i] = W[o, i],
dy[*, o]/dW[o, i] = x[*, i] and dy[*, o]/db[o] = 1, summed over every y that the variable
reaches. The conjugates matter to complex numbers only: for a real loss and z = u + 1j v, PyTorch's
gradient is dL/du + 1j dL/dv, the direction of steepest ascent, and the chain rule through an
analytic y(z) then takes the conjugate of dy/dz. The tangent takes none.
Source: Goodfellow, Bengio, Courville, Deep Learning (2016), section 6.5.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._overridable import overridable
from .._precision import lower_precision


class _Linear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias = inputs
        ctx.bias_shape = None if bias is None else bias.shape
        needs_input, needs_weight, _ = ctx.needs_input_grad
        # A frozen weight needs no input for its gradient, and the other way round.
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        return gradients(grad_output, input, weight, ctx.bias_shape, ctx.needs_input_grad)

    @staticmethod
    def jvp(
        ctx: Any, input_tangent: Tensor, weight_tangent: Tensor, bias_tangent: Tensor | None
    ) -> Tensor:
        input, weight = ctx.saved_tensors
        return tangent(input, weight, input_tangent, weight_tangent, bias_tangent)


def gradients(
    grad_output: Tensor,
    input: Any,
    weight: Any,
    bias_shape: torch.Size | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return those gradients of input, weight and bias that ``needs`` asks for."""
    grad_input = grad_weight = grad_bias = None
    needs_input, needs_weight, needs_bias = needs
    if needs_input:
        grad_input = grad_output @ weight.conj()
    if not (needs_weight or needs_bias):  # the rows may be a copy
        return grad_input, None, None
    rows = _as_rows(grad_output)
    if needs_weight:
        grad_weight = rows.mT @ _as_rows(input).conj()
    if needs_bias and bias_shape is not None:
        if len(bias_shape) == 1:
            grad_bias = rows.sum(0)
        else:  # torch also takes a bias of other dims that broadcasts, more than the output's too
            more = max(len(bias_shape) - grad_output.dim(), 0)
            grad_bias = grad_output[(None,) * more].sum_to_size(bias_shape)
    return grad_input, grad_weight, grad_bias


def tangent(
    input: Tensor,
    weight: Tensor,
    input_tangent: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor | None,
) -> Tensor:
    """Return ``x' W^T + x W'^T + b'``."""
    output_tangent: Tensor = input_tangent @ weight.mT + input @ weight_tangent.mT
    return output_tangent if bias_tangent is None else output_tangent + bias_tangent


def _as_rows(x: Tensor) -> Tensor:
    # reshape with explicit sizes: flatten has no rule in gradcheck's batched pass, and -1 is
    # ambiguous when there are no features.
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


EXPECTS = (
    "input (*, in_features) of at least one dim, weight (out_features, in_features) "
    "and bias (out_features,), all of one dtype"
)
_linear = bind(_Linear, EXPECTS)


@overridable(torch.nn.functional.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply ``y = x W^T + b``; drop-in for :func:`torch.nn.functional.linear`.

    Args:
        input: ``(*, in_features)``, ``*`` any number of dims including none.
        weight: ``(out_features, in_features)``, or ``(in_features,)`` for one unnamed output.
        bias: ``(out_features,)``, ``()`` beside a 1-D weight, or ``None``.

    Returns:
        ``(*, out_features)``, or ``(*)`` for a 1-D weight; in the autocast dtype under autocast.

    Raises:
        RuntimeError: Shapes or dtypes of input, weight and bias do not fit each other.
        TypeError: ``input``, ``weight`` or ``bias`` is not a Tensor.
    """
    return call_by_rows(_linear, input, weight, bias)


def call_by_rows(
    op: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Call ``op`` in the autocast dtype, and with a row for a 1-D weight."""
    input_, weight_, bias_ = lower_precision(input, weight, bias)
    if isinstance(weight, Tensor) and weight.dim() == 1:
        return op(input_, weight_[None], bias_).squeeze(-1)
    return op(input_, weight_, bias_)
