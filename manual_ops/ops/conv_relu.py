"""Convolution and rectifier as one op.

Index convention as in conv.py: ``n`` batch, ``i`` in-channels, ``o`` out-channels, ``u`` output
position, ``k`` kernel position, ``q`` input position; s stride, d dilation, P padding; g = dL/dy.

Forward:   y[n, o, u]     = max(c[n, o, u], 0)
           c[n, o, u]     = b[o] + sum_{i, k} x[n, i, s u + d k - P] W[o, i, k]
Backward:  h[n, o, u]     = g[n, o, u] if y[n, o, u] > 0 else 0
           dL/dx[n, i, q] = sum_{o, k, u: s u + d k - P = q} h[n, o, u] W[o, i, k]
           dL/dW[o, i, k] = sum_{n, u} h[n, o, u] x[n, i, s u + d k - P]
           dL/db[o]       = sum_{n, u} h[n, o, u]
Tangent:   y'[n, o, u]    = c'[n, o, u] if y[n, o, u] > 0 else 0
           c' = conv(x', W) + conv(x, W') + b'

h is what relu.py passes back through max(c, 0), and conv.py's formulas follow with h in the place
of dL/dy. c itself is needed nowhere: y overwrites it, and y > 0 exactly where c > 0.
Source: Goodfellow, Bengio, Courville, Deep Learning (2016), sections 6.3 and 9.5.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import is_dispatch_watched
from .._overridable import overridable
from ._sizes import IntOrTuple
from .conv import (
    EXPECTS,
    Problem,
    conv2d,
    convolve,
    gradients,
    plain_convolution,
    tangent,
)
from .relu import rectifier_chain, relu


class _ConvolutionReLU(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        settings = (stride, padding, dilation, groups)
        return torch.relu(plain_convolution(input, weight, bias, *settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _bias, *settings = inputs
        ctx.problem = Problem.of(input, weight, settings)
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            input if needs_weight else None, weight if needs_input else None, output
        )
        ctx.save_for_forward(input, weight, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, output = ctx.saved_tensors
        h = rectifier_chain(grad_output, output)
        found = gradients(h, input, weight, ctx.problem, ctx.needs_input_grad[:3])
        return *found, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor,
        weight_tangent: Tensor,
        bias_tangent: Tensor | None,
        *_: None,
    ) -> Tensor:
        input, weight, output = ctx.saved_tensors
        tangents = (input_tangent, weight_tangent, bias_tangent)
        return rectifier_chain(tangent(input, weight, *tangents, ctx.problem.settings), output)


def _in_place(input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    """``_ConvolutionReLU.forward`` with y in the place of c."""
    if is_dispatch_watched():
        return _ConvolutionReLU.forward(input, weight, bias, *settings)
    return torch.relu_(plain_convolution(input, weight, bias, *settings))


_convolution_relu = bind(_ConvolutionReLU, EXPECTS, _in_place)


def _one_by_one(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **settings: Any
) -> Tensor:
    return relu(conv2d(input, weight, bias, *args, **settings))


@overridable(parts=_one_by_one)
def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve over two dims and rectify: ``relu(conv2d(...))`` in one op.

    Args:
        input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``; real.
        weight: ``(C_out, C_in / groups, K_h, K_w)``.
        bias: ``(C_out,)`` or ``None``.
        stride: Step of the kernel, >= 1; one number or one for each dim, like the next two.
        padding: Zeros added at both ends, ``"valid"`` (none) or ``"same"`` (output size H, W).
        dilation: Distance between kernel elements, >= 1.
        groups: Number of separate groups of channels; divides C_in and C_out.

    Returns:
        The shape and dtype of :func:`conv2d`. The derivative of ``max`` at 0 is 0.

    Raises:
        RuntimeError: Shapes, dtypes or settings that do not fit.
        TypeError: ``input``, ``weight`` or ``bias`` is not a Tensor.
    """
    settings = (stride, padding, dilation, groups)
    return convolve("conv2d_relu", 2, input, weight, bias, *settings, op=_convolution_relu)
