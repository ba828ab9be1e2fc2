"""The weight gradient of a convolution: one sum, handed to forward kernels in six ways.

           dL/dW[o, i, k] = sum_{n, u} dL/dy[n, o, u] x[n, i, s u + d k - P]          (see conv.py)

Read literally this is a convolution of x with dL/dy as kernel: n the summed channel, i the batch,
u the kernel position, k the output position, stride s and dilation d exchanged. With an output of
only K x K positions it leaves most of a CPU's vector units idle. The sum may be cut up
differently, exactly. In the docstrings below (rows; columns) are matrices, multiplied by x, and
(batch; channels; positions) images, convolved by *; a star before a letter stands for all spatial
dims, letters side by side are merged into one dim. Time over that of ATen's kernel, on one thread
of an AVX2 CPU (``python -m benchmarks.conv_weight_gradient --threads 1``):

    kernel                              literally   as below
    3x3, 64 to 128, 16x16, batch 64        1.2        1.2     by rows
    the same with channels last            1.2        0.9     by pixels
    3x3, 512 to 512, 4x4, batch 64         0.4        0.4     by pixels
    3x3, 32 to 32, 32x32, channels last    1.6        1.0     by taps
    the same of 16x16                      1.4        1.4     literally
    3x3 stride 2, 64 to 128, batch 32      2.1        1.5     by pixels
    3x3 stride 2, 256 to 512, 4x4          1.0        0.4     by pixels
    1x1, 64 to 256, 16x16, batch 128       3.9        0.9     by products
    3x3, 3 to 16, 32x32, batch 128         3.3        1.8     by products
    3x3, 3 to 64, 32x32, batch 64          3.5        1.1     by products
    5x5, 1 to 16, 28x28, batch 128         0.6        0.6     by products
    3x3 depthwise, 64, 16x16, batch 64     9.1        1.1     by planes
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._layout import channels_moved_last, is_channels_last, laid_out
from .._modes import may_overwrite

_WINDOWS = 1 << 21  # elements in a block of ``_by_pixels``, some megabytes
_GRIDS = 1 << 19  # elements in a block of ``_by_taps``, which are read once for each tap
_MANY_POSITIONS = 64  # of an output, for a product of matrices of each sample to be worth its size
# There a narrow convolution with channels last, read literally, takes twice as long as other ways.
_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


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
    taps, positions = math.prod(kernel), math.prod(grad_output.shape[2:])
    overlap = taps * positions / math.prod(input.shape[2:])
    # Half precision would be rounded once for each term that is summed outside the kernel.
    sums_apart = input.element_size() >= 4
    # Where products of matrices may be summed in place.
    plain = sums_apart and input.is_cpu and may_overwrite(grad_output)
    few_together = plain and is_channels_last(input) and overlap >= 3 and out_channels < 128
    if in_channels == 1 and out_channels == groups:
        way = _by_planes
    elif groups == 1 and plain and _suits_taps(grad_output, input, geometry):
        way = _by_taps
    elif groups == 1 and plain and _suits_pixels(grad_output, input, weight_shape, overlap):
        way = _by_pixels
    elif sums_apart and (
        len(kernel) == 1 or in_channels < 16 or (overlap < 3 and positions >= _MANY_POSITIONS)
    ):
        way = _by_products
    elif few_together or (in_channels < 32 and taps >= 25):  # K x K positions fill vectors
        way = _literally
    else:
        way = _by_rows
    gradient = way(grad_output, input, geometry, groups)
    if taps == 1 and not is_channels_last(input):  # strides of the last dims as DDP wants them
        gradient = gradient.reshape(out_channels, in_channels)
    return gradient.reshape(weight_shape)


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


def _by_products(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """A product of matrices over u for each sample, of all windows of x, then sum over the batch.

    The windows take as many times the memory of x as they overlap, so this is for one spatial
    dim, few in-channels, and strides.
    """
    dims, (batch, out_channels) = len(geometry.kernel), grad_output.shape[:2]
    windows = _windows(grad_output, input, geometry, groups, dims)
    n, group, i, u, k = 0, 1, 2, range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    columns = _merge(windows.permute(n, group, *k, i, *u), dims)
    columns = columns.reshape(batch, groups, -1, columns.shape[-1])
    rows = grad_output.reshape(batch, groups, out_channels // groups, -1)
    gradient = (columns @ rows.mT).sum(0).reshape(groups, *geometry.kernel, -1, rows.shape[2])
    return gradient.movedim((-1, -2), (1, 2))


def _suits_pixels(
    grad_output: Tensor, input: Tensor, weight_shape: torch.Size, overlap: float
) -> bool:
    out_channels, in_channels, *kernel = weight_shape
    taps, positions = math.prod(kernel), math.prod(grad_output.shape[2:])
    if len(kernel) != 2 or taps > 9:
        return False
    if is_channels_last(input):
        return in_channels >= 32 and (out_channels >= 128 or overlap < 3 or _AVX512)
    # Channels are moved first, which has to pay.
    enough = 64 if overlap < 3 else 128
    pays = taps > 1 or positions < _MANY_POSITIONS
    return pays and in_channels >= enough and out_channels >= 128


def _by_pixels(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """A product of matrices over n and u at once, of one group, in plain eager code.

        (o; n *u) x (n *u; *K, i)

    With the channels last a window is a few runs of memory, quickly copied. All windows together
    take many times the memory of x; therefore some of them at a time.
    """
    assert groups == 1
    dims, batch = len(geometry.kernel), len(input)
    windows = _windows(grad_output, input, geometry, groups, dims, channels_last=True).squeeze(1)
    n, i, u, k = 0, 1, range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    windows = windows.permute(n, *u, *k, i)
    pixels = channels_moved_last(laid_out(grad_output, True))
    samples = max(_WINDOWS // windows[0].numel(), 1)
    lines = max(_WINDOWS // windows[0, 0].numel(), 1)
    gradient: Tensor | None = None
    for first in range(0, batch, samples):
        some = slice(first, first + samples)
        for x, g in zip(windows[some].split(lines, 1), pixels[some].split(lines, 1), strict=True):
            columns = x.reshape(-1, math.prod(windows.shape[1 + dims :]))
            rows = g.reshape(-1, g.shape[-1]).mT
            gradient = rows @ columns if gradient is None else gradient.addmm_(rows, columns)
    assert gradient is not None
    return gradient.reshape(-1, *windows.shape[1 + dims :]).movedim(-1, 1)


def _suits_taps(grad_output: Tensor, input: Tensor, geometry: _Geometry) -> bool:
    taps, positions = math.prod(geometry.kernel), math.prod(grad_output.shape[2:])
    return (
        len(geometry.kernel) == 2
        and 1 < taps <= 9
        and geometry.stride == (1, 1)
        and is_channels_last(input)
        and 16 <= input.shape[1] <= 64
        and grad_output.shape[1] <= 64
        and positions >= (128 if _AVX512 else 512)
    )


def _by_taps(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """A product of matrices over n and u for each k, of one group without strides, in eager code.

        (o; n *u) x (n *u; i)

    With the channels last, and dL/dy filled up by zeros to the size of the padded x, of width V,
    pixel u is number u1 V + u2 in both, and the pixel u + d k of x, which k pairs it with, stands
    d1 k1 V + d2 k2 further on, for all u. So nothing is copied but what is padded, some samples at
    a time. The zeros meet pixels of x, too, that they have no part in: if one of those is infinite,
    the gradient is NaN.
    """
    assert groups == 1
    (kernel, _stride, padding, dilation), channels = geometry, input.shape[1]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    height, width = (size + 2 * p for size, p in zip(input.shape[2:], padding, strict=True))
    images, pixels = channels_moved_last(input), channels_moved_last(laid_out(grad_output, True))
    around = (0, 0, padding[1], padding[1], padding[0], padding[0])
    gradient = input.new_zeros(*kernel, pixels.shape[-1], channels)
    samples = max(_GRIDS // (height * width * (channels + pixels.shape[-1])), 1)
    for first in range(0, images.shape[0], samples):
        some = slice(first, first + samples)
        x = pad(images[some], around).reshape(-1, channels)
        g = pad(pixels[some], (0, 0, 0, reach[1], 0, reach[0])).reshape(-1, pixels.shape[-1])
        for row, column in itertools.product(*map(range, kernel)):
            distance = row * dilation[0] * width + column * dilation[1]
            gradient[row, column].addmm_(g[: len(g) - distance].mT, x[distance:])
    return gradient.permute(2, 3, 0, 1)


def _by_rows(grad_output: Tensor, input: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """In general: a convolution along all spatial dims but the last, the rows.

    The positions of a row join the batch as summed channels, and the in-channels take their place
    as output positions, so that every vector is full:

        (k_last; n u_last; *H, i) * (o; n u_last; *U, 1) -> (k_last; o; *K, i)
    """
    rest = len(geometry.kernel) - 1
    windows = _windows(grad_output, input, geometry, groups, dims=1)
    n, group, i, rows, u, k = 0, 1, 2, range(3, 3 + rest), 3 + rest, 4 + rest
    images = _merge(windows.permute(k, *rows, i, group, n, u), 3)
    kernels = _merge(grad_output.permute(1, *range(2, 2 + rest), 0, 2 + rest), 2).unsqueeze(-2)
    kernel, stride, padding, dilation = (values[:-1] for values in geometry)
    taps = _Geometry((*kernel, images.shape[-2]), (*stride, 1), (*padding, 0), (*dilation, 1))
    gradient = _correlate(images.movedim(-1, 1), kernels.movedim(-1, 1), taps, groups)
    return gradient.movedim(0, -1).movedim(-2, 1)


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


def _windows(
    grad_output: Tensor,
    input: Tensor,
    geometry: _Geometry,
    groups: int,
    dims: int,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Return ``x[..., s u + d k - P]`` over the last ``dims`` as ``(n, group, i, *H, *u, *k)``.

    With ``channels_last`` over all spatial dims, a view of memory in which ``i`` is the last.
    """
    sizes = (input.shape[2:], grad_output.shape[2:], *geometry)
    moved = list(zip(*(values[-dims:] for values in sizes), strict=True))
    pads: list[int] = []
    for size, count, k, s, p, d in moved:
        pads[:0] = p, (count - 1) * s + (k - 1) * d + 1 - size - p  # negative: never read
    if channels_last:
        windows = pad(channels_moved_last(input), (0, 0, *pads)).contiguous().movedim(-1, 1)
    else:
        windows = pad(input, pads) if any(pads) else input
    for dim, (_, _, k, s, _, d) in enumerate(moved, start=input.dim() - dims):
        windows = windows.unfold(dim, (k - 1) * d + 1, s)[..., ::d]
    return windows.reshape(input.shape[0], groups, -1, *windows.shape[2:])


def _merge(x: Tensor, dims: int) -> Tensor:
    # the last ones; not flatten, which has no rule in gradcheck's batched pass
    return x.reshape(*x.shape[:-dims], math.prod(x.shape[-dims:]))
