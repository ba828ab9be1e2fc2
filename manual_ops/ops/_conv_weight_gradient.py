"""The weight gradient of a convolution: one sum, handed to forward kernels in three ways.

           dL/dW[o, i, k] = sum_{n, u} dL/dy[n, o, u] x[n, i, s u + d k - P]          (see conv.py)

Read literally this is a convolution of x with dL/dy as kernel: n the summed channel, i the batch,
u the kernel position, k the output position, stride s and dilation d exchanged. With an output of
only K x K positions it leaves most of a CPU's vector units idle: 2 to 7 times the time of ATen's
own kernel. The sum may be cut up differently, exactly. Time of the weight gradient over ATen's,
one thread of an AVX-512 CPU (``python -m benchmarks.ops --only conv1d conv2d --threads 1`` shows
what remains of it in forward plus backward):

    kernel                              literally   as below
    3x3, 64 to 128, 16x16, batch 64        2.5        1.35    by rows
    3x3, 512 to 512, 4x4, batch 64         1.2        0.7     by rows
    3x3, 3 to 16, 32x32, batch 128         6.5        2.4     by rows, taps beside the channels
    3x3 depthwise, 64, 16x16, batch 64     7.3        0.5     by planes
    5, 32 to 64, length 1024, batch 64     6.5        2.3     by taps
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return dL/dW for grad_output ``(N, C_out, *)`` and input ``(N, C_in, *)``."""
    if input.numel() == 0 or grad_output.numel() == 0:
        return input.new_zeros(weight_shape)
    one_to_one = weight_shape[1] == 1 and weight_shape[0] == groups
    geometry = (stride, padding, dilation)
    if one_to_one:
        return _by_planes(grad_output, input, weight_shape, *geometry)
    if len(stride) == 1 and input.element_size() >= 4:  # half would be rounded for each sample
        return _by_taps(grad_output, input, weight_shape, *geometry, groups)
    return _by_rows(grad_output, input, weight_shape, *geometry, groups)


def _by_planes(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Depthwise: convolve each plane of x with its plane of dL/dy, then sum over the batch."""
    batch, channels = input.shape[:2]
    planes = torch.convolution(
        input.reshape(1, batch * channels, *input.shape[2:]),
        grad_output.reshape(batch * channels, 1, *grad_output.shape[2:]),
        None,
        dilation,
        padding,
        stride,
        False,
        (0,) * len(stride),
        batch * channels,
    )
    planes = _narrow(planes, weight_shape[2:])
    return planes.reshape(batch, *weight_shape).sum(0)


def _by_taps(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """One spatial dim: a matrix product over u for each k, then sum over the batch."""
    out_channels, in_channels, taps = weight_shape
    windows = _windows(input, grad_output, taps, stride[-1], padding[-1], dilation[-1])
    windows = windows.reshape(-1, groups, in_channels, *windows.shape[-2:])
    rows = grad_output.reshape(-1, groups, out_channels // groups, grad_output.shape[-1])
    gradients = [(rows @ windows[..., k, :].mT).sum(0) for k in range(taps)]
    return torch.stack(gradients, -1).reshape(weight_shape)


def _by_rows(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """In general: a convolution along all of them but the last, the rows.

    The positions of a row join the batch as summed channels, and the in-channels take their place
    as output positions, so that every vector is full:

        (k_last; n u_last; *H, i) * (o; n u_last; *U, 1) -> (k_last; o; *K, i)
    """
    *taps, last_taps = weight_shape[2:]
    in_channels, rest = weight_shape[1], len(taps)
    windows = _windows(input, grad_output, last_taps, stride[-1], padding[-1], dilation[-1])
    # windows: n, (group i), *H, k_last, u_last
    n, group, i, k, u = 0, 1, 2, 3 + rest, 4 + rest
    rows = range(3, 3 + rest)
    windows = windows.reshape(windows.shape[0], groups, in_channels, *windows.shape[2:])
    # Few channels fill no vector either: the taps of the row join them.
    beside = (1, last_taps) if in_channels < 16 else (last_taps, 1)
    order = (*rows, k, i, group, n, u) if beside[0] == 1 else (k, *rows, i, group, n, u)
    as_input = windows.permute(order).reshape(
        beside[0], *input.shape[2:-1], beside[1] * in_channels, -1
    )
    as_weight = grad_output.permute(1, *range(2, 2 + rest), 0, 2 + rest)
    as_weight = as_weight.reshape(weight_shape[0], *grad_output.shape[2:-1], 1, -1)
    gradient = torch.convolution(
        as_input.movedim(-1, 1),
        as_weight.movedim(-1, 1),
        None,
        (*dilation[:-1], 1),
        (*padding[:-1], 0),
        (*stride[:-1], 1),
        False,
        (0,) * len(stride),
        groups,
    )
    gradient = _narrow(gradient, taps)
    if beside[0] == 1:
        gradient = gradient.reshape(*gradient.shape[1:-1], last_taps, in_channels)
        return gradient.movedim(-1, 1)
    return gradient.movedim(0, -1).movedim(-2, 1)


def _windows(
    input: Tensor, grad_output: Tensor, taps: int, stride: int, padding: int, dilation: int
) -> Tensor:
    """Return ``x[..., s u + d k - P]`` as ``(..., k, u)`` over the last dim."""
    span = (grad_output.shape[-1] - 1) * stride + 1
    right = span + (taps - 1) * dilation - input.shape[-1] - padding  # negative: never read
    return pad(input, (padding, right)).unfold(-1, span, dilation)[..., ::stride]


def _narrow(gradient: Tensor, kernel: torch.Size | list[int]) -> Tensor:
    # A stride can leave input unread; it shows as kernel positions past the last.
    for dim, k in enumerate(kernel, start=2):
        gradient = gradient.narrow(dim, 0, k)
    return gradient
