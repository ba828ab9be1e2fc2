"""Average over windows.

Index convention: ``u`` output position, ``k`` position in the window, s stride, P padding; x is
0 outside its range, z[u] is the divisor of window u.

Forward:   y[u]     = sum_k x[s u + k - P] / z[u]
Backward:  dL/dx[q] = sum_{k, u: s u + k - P = q} dL/dy[u] / z[u]
Tangent:   y' = the same average of x'

The function is linear; backward is its transpose, a transposed convolution of dL/dy / z with a
kernel of ones, plane by plane. z is the window's size, padding included or not, or a given
number. Nothing is saved. Source: LeCun et al., Gradient-Based Learning Applied to Document
Recognition (1998), section II-B.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._layout import is_channels_last, laid_out
from .._overridable import overridable
from .._precision import without_autocast
from ._sizes import IntOrTuple, as_tuple


class _AvgPool2d(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Tensor:
        return torch.nn.functional.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, *ctx.settings = inputs
        ctx.input_shape, ctx.channels_last = input.shape, is_channels_last(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_output = laid_out(grad_output, ctx.channels_last)
        grad_input = _spread(grad_output, ctx.input_shape, *ctx.settings)
        grad_input = laid_out(grad_input, ctx.channels_last)
        return grad_input, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> Tensor:
        return torch.nn.functional.avg_pool2d(input_tangent, *ctx.settings)


def _spread(
    grad_output: Tensor,
    input_shape: torch.Size,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    sizes, outputs = input_shape[-2:], grad_output.shape[-2:]
    if divisor_override is not None:
        shares = grad_output / divisor_override
    elif count_include_pad and not ceil_mode:
        shares = grad_output / (kernel[0] * kernel[1])
    else:  # windows at the border are smaller
        rows, columns = (
            _counts(*args, count_include_pad, grad_output)
            for args in zip(sizes, outputs, kernel, stride, padding, strict=True)
        )
        shares = grad_output / (rows[:, None] * columns)
    covered = [(u - 1) * s + k for u, s, k in zip(outputs, stride, kernel, strict=True)]
    side_by_side = kernel == stride and padding == (0, 0) and covered == list(sizes)
    if side_by_side and not is_channels_last(grad_output):  # each share goes to k positions alone
        return shares.repeat_interleave(kernel[1], -1).repeat_interleave(kernel[0], -2)
    ones = grad_output.new_ones(input_shape[-3], 1, *kernel)
    left_over = [q + 2 * p - c for q, p, c in zip(sizes, padding, covered, strict=True)]
    if min(left_over) >= 0:
        return _transposed(shares, ones, stride, padding, left_over)
    # With ceil_mode the last window reaches out of the padding: cut both off afterwards.
    left_over = [max(q + p - c, 0) for q, p, c in zip(sizes, padding, covered, strict=True)]
    grad_padded = _transposed(shares, ones, stride, (0, 0), left_over)
    return grad_padded.narrow(-2, padding[0], sizes[0]).narrow(-1, padding[1], sizes[1])


def _transposed(
    shares: Tensor,
    ones: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    left_over: list[int],
) -> Tensor:
    """Add each share up in all positions of its window."""
    with without_autocast(shares.device.type):
        return torch.conv_transpose2d(
            shares, ones, None, stride, padding, left_over, groups=len(ones)
        )


def _counts(
    size: int,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    with_padding: bool,
    like: Tensor,
) -> Tensor:
    """Elements of each window along one dim, ``(outputs,)``."""
    starts = torch.arange(outputs, device=like.device) * stride - padding
    ends = (starts + kernel).clamp(max=size + padding)
    if not with_padding:
        starts, ends = starts.clamp(min=0), ends.clamp(max=size)
    return (ends - starts).to(like.dtype)


_avg_pool2d = bind(
    _AvgPool2d,
    "input (N, C, H, W) or (C, H, W) of floating dtype, kernel_size and stride >= 1, "
    "padding <= kernel_size / 2, divisor_override not 0, and an output of at least 1 x 1",
)


@overridable(torch.nn.functional.avg_pool2d)
def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Take the mean of each window; drop-in for :func:`torch.nn.functional.avg_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: Height and width of a window; one number or two, like the next two.
        stride: Step of the window; ``None`` for ``kernel_size``.
        padding: Zeros added at both ends, at most half of ``kernel_size``.
        ceil_mode: Also take windows that start inside and end outside.
        count_include_pad: Whether padding counts in the divisor.
        divisor_override: Divide by this instead; not 0.

    Returns:
        ``(N, C, H_out, W_out)``, or without N.

    Raises:
        IndexError: ``input`` of fewer than 3 dims.
        RuntimeError: Other shapes or settings that do not fit.
        TypeError: ``input`` is not a Tensor.
    """
    kernel = as_tuple(kernel_size, 2)
    output: Tensor = _avg_pool2d(
        input,
        kernel,
        kernel if stride is None else as_tuple(stride, 2) or kernel,
        as_tuple(padding, 2),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return output
