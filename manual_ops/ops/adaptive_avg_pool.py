"""Average over a given number of windows, of nearly equal size, that cover the input.

Index convention: ``u`` output position of U along one dim, ``q`` input position of Q. Window u
holds the positions from floor(u Q / U) to ceil((u + 1) Q / U) - 1, z[u] of them; windows overlap
where U does not divide Q. Rows and columns are averaged independently.

Forward:   y[u]     = sum_{q in window(u)} x[q] / z[u]
Backward:  dL/dx[q] = sum_{u: q in window(u)} dL/dy[u] / z[u]
Tangent:   y'[u]    = sum_{q in window(u)} x'[q] / z[u]

The function is linear and backward is its transpose: position q gathers from the windows
floor(q U / Q) to ceil((q + 1) U / Q) - 1 that hold it, by the same rule with U and Q exchanged.
Nothing is saved. Source: He et al., Spatial Pyramid Pooling in Deep Convolutional Networks (2014),
section 2.2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._layout import is_channels_last, laid_out
from .._modes import cached_table
from .._overridable import overridable
from .._precision import widen


class _AdaptiveAvgPool2d(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, output_size: tuple[int, int]) -> Tensor:
        return torch._C._nn.adaptive_avg_pool2d(input, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.output_size = inputs
        ctx.input_size = input.shape[-2:]
        # The gradient of one mean over all positions is contiguous, as in torch.
        ctx.channels_last = is_channels_last(input) and ctx.output_size != (1, 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if grad_output.numel() == 0:
            return grad_output.new_zeros(*grad_output.shape[:-2], *ctx.input_size), None
        wide = widen(grad_output)
        height, width = ctx.input_size
        if ctx.output_size == (1, 1):
            grad_input = (wide / (height * width)).expand(*grad_output.shape[:-2], height, width)
        else:
            grad_input = _spread(_spread(wide, -1, width), -2, height)
        return laid_out(grad_input.to(grad_output.dtype), ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, _output_size: None) -> Tensor:
        return torch._C._nn.adaptive_avg_pool2d(input_tangent, ctx.output_size)


def _spread(grad: Tensor, dim: int, size: int) -> Tensor:
    """Spread ``grad`` along ``dim`` (-1 or -2) over the ``size`` positions of the windows."""
    windows = grad.shape[dim]
    if size % windows == 0:  # equal windows that do not overlap
        return (grad / (size // windows)).repeat_interleave(size // windows, dim)
    lengths, place = _lengths_and_places(windows, size, grad.dtype, grad.device)
    shares = grad / (lengths if dim == -1 else lengths[:, None])
    # The windows that hold a position are neighbours: sums of one of them, of two, ... are few, and
    # each position takes one. A product with a matrix of ones and zeros would turn an infinite
    # gradient into NaN.
    sums = [shares]
    for more in range(1, min(-(-windows // size) + 1, windows)):
        count = windows - more
        sums.append(sums[-1].narrow(dim, 0, count) + shares.narrow(dim, more, count))
    return torch.cat(sums, dim).index_select(dim, place)


@cached_table
def _lengths_and_places(
    windows: int, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the windows' lengths, and where each position's sum is among those of ``_spread``."""
    first, after = _bounds(windows, size, device)
    lengths = (after - first).to(dtype)
    first, after = _bounds(size, windows, device)
    others = after - first - 1
    return lengths, first + others * windows - others * (others - 1) // 2


def _bounds(parts: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where each of ``parts`` windows over ``size`` positions starts and ends."""
    index = torch.arange(parts, device=device)
    return index * size // parts, -(-(index + 1) * size // parts)


_adaptive_avg_pool2d = bind(
    _AdaptiveAvgPool2d,
    "input (N, C, H, W) or (C, H, W) of floating dtype with no dim of size 0 but N, output_size of "
    "one or two non-negative integers",
)


@overridable(torch.nn.functional.adaptive_avg_pool2d)
def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Average to a given size; drop-in for :func:`torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        output_size: Height and width of the output; one number for both, ``None`` to keep that of
            the input there.

    Returns:
        ``(N, C, *output_size)``, or without N.

    Raises:
        RuntimeError: Shapes or sizes that do not fit.
        ValueError: ``output_size`` holds as many numbers as ``input`` has dims, or more.
        TypeError: ``output_size`` is no integer and no sequence.
        NotImplementedError: Integer ``input``.
    """
    if isinstance(output_size, (int, torch.SymInt)):
        sizes: tuple[int, ...] = (output_size, output_size)
    else:
        wanted = tuple(output_size)  # type: ignore[arg-type]
        if len(wanted) >= input.dim():
            raise ValueError(
                f"adaptive_avg_pool2d: expected input of at least {len(wanted) + 1} dims for "
                f"output_size={wanted}, got {tuple(input.shape)}"
            )
        own = input.shape[input.dim() - len(wanted) :]
        sizes = tuple(o if w is None else w for w, o in zip(wanted, own, strict=True))
    output: Tensor = _adaptive_avg_pool2d(input, sizes)
    return output
