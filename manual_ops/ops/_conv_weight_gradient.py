"""The weight gradient of a convolution: one sum, handed to forward kernels in five ways.

           dL/dW[o, i, k] = sum_{n, u} dL/dy[n, o, u] x[n, i, s u + d k - P]          (see conv.py)

Read literally this is a convolution of x with dL/dy as kernel: n the summed channel, i the batch,
u the kernel position, k the output position, stride s and dilation d exchanged. With an output of
only K x K positions it leaves most of a CPU's vector units idle: 1.3 to 14 times the time of
ATen's own kernel. The sum may be cut up differently, exactly. Time over that of ATen's kernel, on
one thread of an AVX-512 CPU (``python -m benchmarks.conv_weight_gradient``):

    kernel                              literally   as below
    3x3, 64 to 128, 16x16, batch 64        3.4        1.3     by rows
    3x3, 512 to 512, 4x4, batch 64         1.3        0.7     by rows
    3x3, 3 to 16, 32x32, batch 128         5.3        2.3     by samples
    3x3, 3 to 64, 32x32, batch 64          7.9        1.3     by samples
    3x3 depthwise, 64, 16x16, batch 64    14          1.0     by planes
    5, 32 to 64, length 1024, batch 64     7.6        2.6     by taps
"""

import math
from typing import NamedTuple

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
    out_channels, in_channels, *kernel = weight_shape
    geometry = _Geometry(tuple(kernel), stride, padding, dilation)
    # Half precision would be rounded once for each term that is summed outside the kernel.
    sums_apart = input.element_size() >= 4
    if in_channels == 1 and out_channels == groups:
        way = _by_planes
    elif sums_apart and len(kernel) == 1:
        way = _by_taps
    elif sums_apart and in_channels < 16:
        way = _by_samples
    elif in_channels < 32 and math.prod(kernel) >= 25:  # K x K positions enough to fill vectors
        way = _literally
    else:
        way = _by_rows
    return way(grad_output, input, geometry, groups).reshape(weight_shape)


class _Geometry(NamedTuple):
    """Of the forward convolution; a number for each spatial dim."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def _literally(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """Batch and channels change places in both arguments, and in the result."""
    batch = input.shape[0]
    images = input.reshape(batch, groups, -1, *input.shape[2:]).movedim((2, 1), (0, 1))
    images = images.reshape(-1, groups * batch, *input.shape[2:])
    return _correlate(images, grad_output.transpose(0, 1), geometry, groups).transpose(0, 1)


def _by_planes(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """Depthwise: convolve each plane of x with its plane of dL/dy, then sum over the batch."""
    batch = input.shape[0]
    planes = _correlate(
        input.reshape(1, batch * groups, *input.shape[2:]),
        grad_output.reshape(batch * groups, 1, *grad_output.shape[2:]),
        geometry,
        batch * groups,
    )
    return planes.reshape(batch, groups, *geometry.kernel).sum(0)


def _by_taps(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """One spatial dim: a matrix product over u for each k, then sum over the batch."""
    windows = _windows(grad_output, input, geometry, groups)
    rows = grad_output.reshape(grad_output.shape[0], groups, -1, grad_output.shape[-1])
    taps = [(rows @ windows[..., k, :].mT).sum(0) for k in range(*geometry.kernel)]
    return torch.stack(taps, -1)


def _by_rows(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """In general: a convolution along all spatial dims but the last, the rows.

    The positions of a row join the batch as summed channels, and the in-channels take their place
    as output positions, so that every vector is full:

        (k_last; n u_last; *H, i) * (o; n u_last; *U, 1) -> (k_last; o; *K, i)
    """
    rest = len(geometry.kernel) - 1
    windows = _windows(grad_output, input, geometry, groups)
    n, group, i, rows, k, u = 0, 1, 2, range(3, 3 + rest), 3 + rest, 4 + rest
    images = _merge(windows.permute(k, *rows, i, group, n, u), 3)
    kernels = _merge(grad_output.permute(1, *range(2, 2 + rest), 0, 2 + rest), 2).unsqueeze(-2)
    gradient = _correlate_rows(images, kernels, geometry, groups)
    return gradient.movedim(0, -1).movedim(-2, 1)


def _by_samples(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """By rows for few in-channels, which fill no vector: the taps of the row join them.

    Each sample is a group of its own, summed at the end. dL/dy, most of what is read here, then
    serves as the kernels as it is:

        (1; n u_last; *H, k_last i) * (n o; u_last; *U, 1) -> (1; n o; *K, k_last i)
    """
    rest, (batch, out_channels) = len(geometry.kernel) - 1, grad_output.shape[:2]
    windows = _windows(grad_output, input, geometry, groups)
    n, group, i, rows, k, u = 0, 1, 2, range(3, 3 + rest), 3 + rest, 4 + rest
    images = _merge(windows.permute(*rows, k, i, n, group, u), 3)
    images = images.reshape(1, *input.shape[2:-1], -1, images.shape[-1])
    kernels = grad_output.reshape(-1, *grad_output.shape[2:]).unsqueeze(-2)
    gradient = _correlate_rows(images, kernels, geometry, batch * groups)
    return gradient.reshape(batch, out_channels, *geometry.kernel, -1).sum(0).movedim(-1, 1)


def _correlate_rows(images: Tensor, kernels: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """``_correlate`` with channels last in both arguments and a last dim that does not move."""
    kernel, stride, padding, dilation = (values[:-1] for values in geometry)
    rows = _Geometry((*kernel, images.shape[-2]), (*stride, 1), (*padding, 0), (*dilation, 1))
    return _correlate(images.movedim(-1, 1), kernels.movedim(-1, 1), rows, groups)


def _correlate(images: Tensor, kernels: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """Convolve x with dL/dy as kernel, the forward convolution's stride and dilation exchanged."""
    kernel, stride, padding, dilation = geometry
    gradient = torch.convolution(
        images, kernels, None, dilation, padding, stride, False, (0,) * len(kernel), groups
    )
    # A stride can leave input unread; it shows as kernel positions past the last.
    for dim, k in enumerate(kernel, start=2):
        gradient = gradient.narrow(dim, 0, k)
    return gradient


def _windows(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """Return ``x[..., s u + d k - P]`` over the last dim as ``(n, group, i, *H, k, u)``."""
    taps, stride, padding, dilation = (values[-1] for values in geometry)
    span = (grad_output.shape[-1] - 1) * stride + 1
    right = span + (taps - 1) * dilation - input.shape[-1] - padding  # negative: never read
    windows = pad(input, (padding, right)).unfold(-1, span, dilation)[..., ::stride]
    return windows.reshape(windows.shape[0], groups, -1, *windows.shape[2:])


def _merge(x: Tensor, dims: int) -> Tensor:
    # the last ones; not flatten, which has no rule in gradcheck's batched pass
    return x.reshape(*x.shape[:-dims], math.prod(x.shape[-dims:]))
