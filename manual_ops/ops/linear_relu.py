"""Affine map and rectifier as one op.

Index convention: ``*`` leading (batch) dims, ``i`` in-features, ``o`` out-features; g = dL/dy.

Forward:   y[*, o]     = max(u[*, o], 0),  u[*, o] = sum_i x[*, i] W[o, i] + b[o]
Backward:  h[*, o]     = g[*, o] if y[*, o] > 0 else 0
           dL/dx[*, i] = sum_o h[*, o] W[o, i]
           dL/dW[o, i] = sum_* h[*, o] x[*, i]
           dL/db[o]    = sum_* h[*, o]
Tangent:   y'[*, o]    = u'[*, o] if y[*, o] > 0 else 0,  u' = x' W^T + x W'^T + b'

h is what relu.py passes back through max(u, 0), and linear.py's formulas follow with h in the
place of dL/dy. u itself is needed nowhere: y overwrites it, and y > 0 exactly where u > 0. One op
instead of two writes one tensor of outputs instead of two and makes one call into Python.
Source: Goodfellow, Bengio, Courville, Deep Learning (2016), sections 6.3 and 6.5.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import is_dispatch_watched
from .._overridable import overridable
from .linear import EXPECTS, call_by_rows, gradients, linear, tangent
from .relu import rectifier_chain, relu


class _LinearReLU(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.relu(torch.nn.functional.linear(input, weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias = inputs
        ctx.bias_shape = None if bias is None else bias.shape
        needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            input if needs_weight else None, weight if needs_input else None, output
        )
        ctx.save_for_forward(input, weight, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, output = ctx.saved_tensors
        h = rectifier_chain(grad_output, output)
        return gradients(h, input, weight, ctx.bias_shape, ctx.needs_input_grad)

    @staticmethod
    def jvp(
        ctx: Any, input_tangent: Tensor, weight_tangent: Tensor, bias_tangent: Tensor | None
    ) -> Tensor:
        input, weight, output = ctx.saved_tensors
        tangents = (input_tangent, weight_tangent, bias_tangent)
        return rectifier_chain(tangent(input, weight, *tangents), output)


def _in_place(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``_LinearReLU.forward`` with y in the place of u."""
    if is_dispatch_watched():
        return _LinearReLU.forward(input, weight, bias)
    return torch.relu_(torch.nn.functional.linear(input, weight, bias))


_linear_relu = bind(_LinearReLU, EXPECTS, _in_place)


def _one_by_one(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return relu(linear(input, weight, bias))


@overridable(parts=_one_by_one)
def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply ``max(x W^T + b, 0)``: ``relu(linear(input, weight, bias))`` in one op.

    Args:
        input: ``(*, in_features)``, ``*`` any number of dims including none.
        weight: ``(out_features, in_features)``, or ``(in_features,)`` for one unnamed output.
        bias: ``(out_features,)``, ``()`` beside a 1-D weight, or ``None``.

    Returns:
        ``(*, out_features)``, or ``(*)`` for a 1-D weight; in the autocast dtype under autocast.
        The derivative of ``max`` at 0 is 0.

    Raises:
        RuntimeError: Shapes or dtypes of input, weight and bias do not fit each other.
        TypeError: ``input``, ``weight`` or ``bias`` is not a Tensor.
    """
    return call_by_rows(_linear_relu, input, weight, bias)
