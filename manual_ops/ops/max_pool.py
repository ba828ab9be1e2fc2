"""Maximum over windows.

Index convention: ``u`` output position, ``q`` input position, ``k`` kernel position, each a row and
a column of one plane (sample and channel); s stride, d dilation, P padding. Window ``u`` starts at
f[u] = s u - P and holds the positions f[u] + d k that are in the plane; a[u] is that of its
maximum, row by row the first one where several are equal.

Forward:   y[u] = max over q in window(u) of x[q] = x[a[u]]
Backward:  dL/dx[q] = sum_{u: a[u] = q} dL/dy[u]
Tangent:   y'[u] = x'[a[u]]

Backward is the transpose of the selection x -> x[a]: it adds every dL/dy[u] where its value came
from, several times where windows overlap. The input is not saved, only ``a``, and of that only
the distance a[u] - f[u], both counted row by row through the plane: a number so small that it
takes one byte mostly, where a[u] takes eight.

ATen's kernel compares one value at a time, and half of its branches are mispredicted; where
channels are innermost in memory it compares vectors of them. So every window becomes a channel
here: the k-th elements of all windows are row k of an image one pixel wide, and y is the maximum
of its column. That is a copy more, and 0.3 to 0.6 of the time. Padding is filled with copies of
the border. Each lies in a window that holds the copied element too, next to it, so neither the
maximum nor which position comes first changes.
Source: Goodfellow, Bengio, Courville, Deep Learning (2016), section 9.3; LeCun et al. (1998).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from .._apply import bind
from .._layout import is_channels_last, reshaped
from .._modes import cached_table, may_overwrite
from .._overridable import overridable
from .._precision import without_autocast
from ._sizes import IntOrTuple, as_tuple

Sizes = tuple[int, ...]

_SMALL = 2**15  # elements for which one kernel is quicker than the calls of several


class _MaxPool2d(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        kernel: Sizes,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        ceil_mode: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return y and a - f."""
        output, indices = torch._C._nn.max_pool2d_with_indices(
            input, kernel, stride, padding, dilation, ceil_mode
        )
        dtype = _distance_dtype(input.shape, kernel, dilation)
        # The lowest byte of a difference is the difference of the lowest bytes.
        return output, indices.to(dtype) - _first(indices, input.shape, stride, padding, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _output, distances = output
        input, kernel, ctx.stride, ctx.padding, dilation, _ceil_mode = inputs
        ctx.input_shape = input.shape
        ctx.disjoint = all(
            s > d * (k - 1) for k, s, d in zip(kernel, ctx.stride, dilation, strict=True)
        )
        ctx.mark_non_differentiable(distances)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(distances)
        ctx.save_for_forward(distances)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, _grad_distances: None
    ) -> tuple[Tensor | None, ...]:
        (distances,) = ctx.saved_tensors
        grad_input = None
        if grad_output is not None:
            indices = _positions(distances, ctx.input_shape, ctx.stride, ctx.padding)
            grad_input = _scatter(grad_output, indices, ctx.input_shape, ctx.disjoint)
        return grad_input, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        (distances,) = ctx.saved_tensors
        indices = _positions(distances, ctx.input_shape, ctx.stride, ctx.padding)
        if is_channels_last(indices):
            selected = _pixels(input_tangent).gather(1, _pixels(indices))
            return _images(selected, indices.shape), None
        selected = _planes(input_tangent).gather(-1, _planes(indices))
        return selected.reshape(indices.shape), None


def _by_columns(
    input: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """Forward on CPU, by a column of values for each window."""
    settings = (kernel, stride, padding, dilation)
    if (
        type(input) is not Tensor
        or not (input.is_cpu and input.is_floating_point())
        or input.dim() not in (3, 4)
        or input.numel() < _SMALL
        or is_channels_last(input)
        or any(len(values) != 2 for values in settings)
    ):
        return _MaxPool2d.forward(input, *settings, ceil_mode)
    counts, missing = zip(
        *map(_coverage, input.shape[-2:], *settings, (ceil_mode,) * 2), strict=True
    )
    padded = any(padding) or max(missing) > 0
    if (
        min(counts) < 1
        or (padded and dilation != (1, 1))  # a copy of the border may not be in the window
        or any(2 * p > k for k, p in zip(kernel, padding, strict=True))
    ):
        return _MaxPool2d.forward(input, *settings, ceil_mode)
    image = input
    if padded:
        below, right = (max(m, 0) for m in missing)
        with without_autocast("cpu"):
            image = pad(input, (padding[1], right, padding[0], below), "replicate")
    *planes, down, across = image.stride()
    windows = image.as_strided(
        (len(input), *kernel, *input.shape[1:-2], *counts),
        (
            planes[0],
            dilation[0] * down,
            dilation[1] * across,
            *planes[1:],
            stride[0] * down,
            stride[1] * across,
        ),
    )
    columns = windows.reshape(len(input), kernel[0] * kernel[1], 1, -1).permute(0, 3, 1, 2)
    output, order = torch._C._nn.max_pool2d_with_indices(columns, (columns.shape[2], 1))
    distances = _distances(input.shape, counts, kernel, stride, padding, dilation, padded)
    if padded:
        order = order.view(-1, distances.shape[-1]).mul_(distances.shape[-1])
        order.add_(torch.arange(distances.shape[-1], device=order.device))
    shape = torch.Size((*input.shape[:-2], *counts))
    return reshaped(output, shape), distances.view(-1).gather(0, order.view(-1)).view(shape)


def _without_distances(
    input: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> tuple[Tensor, None]:
    return torch.max_pool2d(input, kernel, stride, padding, dilation, ceil_mode), None


def _distances(
    input_shape: Sizes,
    counts: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    padded: bool,
) -> Tensor:
    """Return the distance that each element of a window has from its first one, ``(K,)``.

    With padding, that of what it is a copy of, which is not the same in all windows: ``(K, U)``.
    """
    width = input_shape[-1]
    dtype = _distance_dtype(input_shape, kernel, dilation)
    if not padded:
        return torch.tensor(
            [
                r * dilation[0] * width + c * dilation[1]
                for r in range(kernel[0])
                for c in range(kernel[1])
            ],
            dtype=dtype,
            device="cpu",
        )
    first = _starts(counts, stride, padding, torch.device("cpu"))
    rows, columns = (
        torch.arange(k, device="cpu").unsqueeze(-1).clamp(-starts, size - 1 - starts)
        for size, k, starts in zip(input_shape[-2:], kernel, first, strict=True)
    )
    table = rows[:, None, :, None] * width + columns[:, None]
    return table.to(dtype).view(kernel[0] * kernel[1], -1)


def _coverage(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> tuple[int, int]:
    """Return how many windows there are along a dim, and how far the last reaches beyond it."""
    if min(kernel, stride, dilation) < 1 or padding < 0:
        return 0, 0
    length = dilation * (kernel - 1) + 1
    room = size + 2 * padding - length
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:  # it would start in the padding
        count -= 1
    return count, (count - 1) * stride + length - padding - size


def _first(
    like: Tensor, input_shape: Sizes, stride: Sizes, padding: Sizes, dtype: torch.dtype
) -> Tensor:
    """Return f, ``(H_out, W_out)``: negative where a window starts in the padding."""
    return _first_of(like.shape[-2:], input_shape[-1], stride, padding, dtype, like.device)


@cached_table
def _first_of(
    counts: Sizes,
    width: int,
    stride: Sizes,
    padding: Sizes,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    rows, columns = _starts(counts, stride, padding, device)
    return (rows.unsqueeze(-1) * width + columns).to(dtype)


def _starts(counts: Sizes, stride: Sizes, padding: Sizes, device: torch.device) -> list[Tensor]:
    """Return the rows and the columns where windows start."""
    return [
        torch.arange(-p, count * s - p, s, device=device)
        for count, s, p in zip(counts, stride, padding, strict=True)
    ]


def _distance_dtype(input_shape: Sizes, kernel: Sizes, dilation: Sizes) -> torch.dtype:
    """Return the smallest dtype that holds how far a window's last position is from its first."""
    rows, columns = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    width = input_shape[-1]
    if not isinstance(width, int):  # of dynamic shapes, which the choice would bound
        return torch.int64
    longest = rows * max(width, kernel[1]) + columns
    dtypes = (torch.uint8, torch.int16, torch.int32)
    return next((d for d in dtypes if longest <= torch.iinfo(d).max), torch.int64)


def _positions(distances: Tensor, input_shape: Sizes, stride: Sizes, padding: Sizes) -> Tensor:
    """Return a, int64."""
    first = _first(distances, input_shape, stride, padding, torch.int64)
    return distances.to(torch.int64, copy=True).add_(first)


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


_EXPECTS = (
    "input (N, C, H, W) or (C, H, W), kernel_size, stride and dilation >= 1, "
    "padding <= kernel_size / 2, and an output of at least 1 x 1"
)
_max_pool2d_with_distances = bind(_MaxPool2d, _EXPECTS, _by_columns)
_max_pool2d = bind(_MaxPool2d, _EXPECTS, _by_columns, _without_distances)


@overridable(torch.nn.functional.max_pool2d)
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
        TypeError: ``input`` is not a Tensor.
    """
    kernel = as_tuple(kernel_size, 2)
    strides = kernel if stride is None else as_tuple(stride, 2) or kernel
    paddings = as_tuple(padding, 2)
    output: Tensor
    pool = _max_pool2d_with_distances if return_indices else _max_pool2d
    output, distances = pool(input, kernel, strides, paddings, as_tuple(dilation, 2), ceil_mode)
    if return_indices:
        return output, _positions(distances, input.shape, strides, paddings)
    return output
