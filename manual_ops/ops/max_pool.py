"""Maximum over windows.

Index convention: ``u`` output position, ``q`` input position, each of one plane (sample and
channel); a[u] is the position of the maximum of window u, the first one where several are equal.

Forward:   y[u] = max over q in window(u) of x[q] = x[a[u]]
Backward:  dL/dx[q] = sum_{u: a[u] = q} dL/dy[u]
Tangent:   y'[u] = x'[a[u]]

Backward is the transpose of the selection x -> x[a]: it adds every dL/dy[u] where its value came
from, several times where windows overlap. The input is not saved, only a.
Source: Goodfellow, Bengio, Courville, Deep Learning (2016), section 9.3; LeCun et al. (1998).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._layout import is_channels_last
from .._modes import may_overwrite
from ._sizes import IntOrTuple, as_tuple


class _MaxPool2d(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        ceil_mode: bool,
    ) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.max_pool2d_with_indices(
            input, kernel_size, stride, padding, dilation, ceil_mode
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _output, indices = output
        input, kernel_size, stride, _padding, dilation, _ceil_mode = inputs
        ctx.input_shape = input.shape
        ctx.disjoint = all(
            s > d * (k - 1)
            for k, s, d in zip(kernel_size, stride or kernel_size, dilation, strict=True)
        )
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, _grad_indices: None
    ) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        grad_input = None
        if grad_output is not None:
            grad_input = _scatter(grad_output, indices, ctx.input_shape, ctx.disjoint)
        return grad_input, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        if is_channels_last(indices):
            selected = _pixels(input_tangent).gather(1, _pixels(indices))
            return _images(selected, indices.shape), None
        selected = _planes(input_tangent).gather(-1, _planes(indices))
        return selected.reshape(indices.shape), None


def _scatter(
    grad_output: Tensor, indices: Tensor, input_shape: torch.Size, disjoint: bool
) -> Tensor:
    # Where no two windows share a position there is nothing to add.
    name = "scatter" if disjoint else "scatter_add"
    scatter = getattr(Tensor, name + "_" if may_overwrite(grad_output) else name)
    if is_channels_last(indices):  # as planes, with strides, six times as slow in bfloat16
        n, c, h, w = input_shape
        pixels = scatter(
            grad_output.new_zeros(n, h * w, c), 1, _pixels(indices), _pixels(grad_output)
        )
        return _images(pixels, input_shape)
    zeros = _planes(grad_output.new_zeros(input_shape))
    planes: Tensor = scatter(zeros, -1, _planes(indices), _planes(grad_output))
    return planes.reshape(input_shape)


def _pixels(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h * w, c)


def _images(pixels: Tensor, shape: torch.Size) -> Tensor:
    n, c, h, w = shape
    return pixels.reshape(n, h, w, c).permute(0, 3, 1, 2)


def _planes(x: Tensor) -> Tensor:
    # Not flatten, which has no rule in gradcheck's batched pass.
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


_max_pool2d = bind(
    _MaxPool2d,
    "input (N, C, H, W) or (C, H, W), kernel_size, stride and dilation >= 1, "
    "padding <= kernel_size / 2, and an output of at least 1 x 1",
)


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Take the maximum of each window; drop-in for :func:`torch.nn.functional.max_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: Height and width of a window; one number or two, like the next three.
        stride: Step of the window; ``None`` for ``kernel_size``.
        padding: Minus infinities added at both ends, at most half of ``kernel_size``.
        dilation: Distance between the elements of a window.
        ceil_mode: Also take windows that start inside and end outside.
        return_indices: Also return where the maxima were.

    Returns:
        ``(N, C, H_out, W_out)``; with ``return_indices`` also the positions in the H x W plane,
        int64 of the same shape. Of equal values the first gets the whole gradient.

    Raises:
        RuntimeError: Shapes or settings that do not fit.
    """
    sizes = (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    output: Tensor
    output, indices = _max_pool2d(input, *(as_tuple(size, 2) for size in sizes), ceil_mode)
    return (output, indices) if return_indices else output
