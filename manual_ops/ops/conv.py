"""Convolution (cross-correlation) over any number of spatial dims.

Index convention: ``n`` batch, ``i`` in-channels, ``o`` out-channels, ``u`` output position, ``k``
kernel position; s stride, d dilation, P padding; x is 0 outside its range.

Forward:   y[n, o, u]     = b[o] + sum_{i, k} x[n, i, s u + d k - P] W[o, i, k]
Backward:  dL/dx[n, i, q] = sum_{o, k, u: s u + d k - P = q} dL/dy[n, o, u] conj W[o, i, k]
           dL/dW[o, i, k] = sum_{n, u} dL/dy[n, o, u] conj x[n, i, s u + d k - P]
           dL/db[o]       = sum_{n, u} dL/dy[n, o, u]
Tangent:   y' = conv(x', W) + conv(x, W') + b'

The conjugates are those of linear.py: they matter to complex numbers only.
Both gradients are convolutions again. dL/dx scatters every dL/dy[u] over the positions q it came
from: the transposed convolution of dL/dy with W, whose output padding makes up for the positions
that the stride left over. dL/dW is the convolution of x with dL/dy as kernel, where n is the
summed channel, i the batch, u the kernel position and k the output position, so stride and
dilation change places:
           dL/dW[o, i, k] = sum_{n, u} x^T[i, n, d k + s u - P] dL/dy^T[o, n, u]
_conv_weight_gradient.py says how that sum is evaluated. With groups the channels of each group
are convolved among themselves, in both directions.
Source: Dumoulin and Visin, A Guide to Convolution Arithmetic (2016), chapter 4; Goodfellow,
Bengio, Courville, Deep Learning (2016), section 9.5.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._layout import is_channels_last, laid_out
from .._overridable import overridable
from .._precision import lower_precision, without_autocast
from ._conv_weight_gradient import weight_gradient
from ._refusal import no_tensor
from ._sizes import IntOrTuple, as_tuple


class _Convolution(Function):
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
        if input.is_complex():
            settings = (stride, padding, dilation, groups)
            output = _by_real_parts(
                lambda x, w: _Convolution.forward(x, w, None, *settings), input, weight
            )
            return output if bias is None else output + bias.reshape(-1, *(1 for _ in stride))
        no_output_padding = (0,) * len(stride)
        return torch.convolution(
            input, weight, bias, stride, padding, dilation, False, no_output_padding, groups
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _bias, *settings = inputs
        ctx.problem = Problem.of(input, weight, settings)
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        # A frozen weight needs no input for its gradient, and the other way round.
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        found = gradients(grad_output, input, weight, ctx.problem, ctx.needs_input_grad[:3])
        return *found, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor,
        weight_tangent: Tensor,
        bias_tangent: Tensor | None,
        *_: None,
    ) -> Tensor:
        input, weight = ctx.saved_tensors
        tangents = (input_tangent, weight_tangent, bias_tangent)
        return tangent(input, weight, *tangents, ctx.problem.settings)


plain_convolution = _Convolution.forward


class Problem(NamedTuple):
    """What backward needs beside tensors."""

    input: torch.Size
    weight: torch.Size
    channels_last: bool
    settings: Sequence[Any]  # stride, padding, dilation, groups

    @staticmethod
    def of(input: Tensor, weight: Tensor, settings: Sequence[Any]) -> "Problem":
        """Return those of a convolution of ``input`` with ``weight``."""
        channels_last = is_channels_last(input) or is_channels_last(weight)
        return Problem(input.shape, weight.shape, channels_last, settings)


def gradients(
    grad_output: Tensor, input: Any, weight: Any, problem: Problem, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return those gradients of input, weight and bias that ``needs`` asks for."""
    with without_autocast(grad_output.device.type):
        return _gradients(grad_output, input, weight, problem, needs)


def _gradients(
    grad_output: Tensor, input: Any, weight: Any, problem: Problem, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    needs_input, needs_weight, needs_bias = needs
    if grad_output.shape[1] != problem.weight[0]:  # without channels ATen puts out none
        shapes = (problem.input, problem.weight, problem.weight[:1])
        zeros = map(grad_output.new_zeros, shapes)
        return tuple(z if needed else None for z, needed in zip(zeros, needs, strict=True))
    grad_output = laid_out(grad_output, problem.channels_last)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = _by_real_parts(
            lambda g, w: _input_gradient(g, w, problem.input, *problem.settings),
            grad_output,
            weight.conj(),
        )
        grad_input = laid_out(grad_input, problem.channels_last)
    if needs_weight:
        grad_weight = _by_real_parts(
            lambda g, x: weight_gradient(g, x, problem.weight, *problem.settings),
            grad_output,
            input.conj(),
        )
        grad_weight = laid_out(grad_weight, problem.channels_last)
    if needs_bias:
        grad_bias = grad_output.sum([0, *range(2, grad_output.dim())])
    return grad_input, grad_weight, grad_bias


def tangent(
    input: Tensor,
    weight: Tensor,
    input_tangent: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor | None,
    settings: Sequence[Any],
) -> Tensor:
    """Return ``conv(x', W) + conv(x, W') + b'``."""
    output_tangent = plain_convolution(input_tangent, weight, bias_tangent, *settings)
    return output_tangent + plain_convolution(input, weight_tangent, None, *settings)


def _by_real_parts(
    product: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> Tensor:
    """Extend a bilinear ``product`` of real tensors to complex ones, which ATen's kernels refuse.

    (a + 1j b) (c + 1j d) = ac - bd + 1j ((a + b) (c + d) - ac - bd): three real products, not four.
    """
    if not first.is_complex():
        return product(first, second)
    real, imaginary = product(first.real, second.real), product(first.imag, second.imag)
    both = product(first.real + first.imag, second.real + second.imag)
    return torch.complex(real - imaginary, both - real - imaginary)


def _input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    input_shape: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    reached = [
        (u - 1) * s - 2 * p + d * (k - 1) + 1
        for u, s, p, d, k in zip(
            grad_output.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    left_over = [q - r for q, r in zip(input_shape[2:], reached, strict=True)]
    return torch.convolution(
        grad_output, weight, None, stride, padding, dilation, True, left_over, groups
    )


EXPECTS = (
    "input (N, C_in, *), weight (C_out, C_in / groups, *) and bias (C_out,), all of one dtype, "
    "a kernel no larger than the padded input, stride and dilation >= 1, padding >= 0"
)
_convolution = bind(_Convolution, EXPECTS)


def convolve(
    name: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
    op: Callable[..., Tensor] = _convolution,
) -> Tensor:
    """Check the arguments of ``name``, over ``dims`` dims, resolve ``padding`` and call ``op``."""
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor):
        raise no_tensor(name, input=input, weight=weight)
    if weight.dim() != dims + 2 or input.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{name}: expected {dims + 1}D (unbatched) or {dims + 2}D (batched) input and "
            f"{dims + 2}D weight, got input {tuple(input.shape)} and weight {tuple(weight.shape)}"
        )
    strides, dilations = as_tuple(stride, dims), as_tuple(dilation, dims)
    paddings = symmetric_padding(padding, weight, strides, dilations)
    if paddings is None:
        input, paddings = _padded_at_the_end(input, weight, dilations)
    input_, weight_, bias_ = lower_precision(input, weight, bias)
    if isinstance(bias_, Tensor) and bias_.dtype != weight_.dtype:
        raise RuntimeError(
            f"{name}: expected bias of weight's dtype {weight_.dtype}, got {bias_.dtype}"
        )
    unbatched = input.dim() == dims + 1
    output = op(
        input_.unsqueeze(0) if unbatched else input_,
        weight_,
        bias_,
        strides,
        paddings,
        dilations,
        groups,
    )
    return output.squeeze(0) if unbatched else output


def symmetric_padding(
    padding: IntOrTuple | str,
    weight: Tensor,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...] | None:
    """Return ``padding`` as numbers; None where ``same`` needs more at one end than the other."""
    if not isinstance(padding, str):
        return as_tuple(padding, len(stride))
    if padding == "valid":
        return (0,) * len(stride)
    totals = _same_padding(padding, weight, stride, dilation)
    return None if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)


def _same_padding(
    padding: str, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> list[int]:
    """Return how many zeros ``same`` adds along each dim, at both ends together."""
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: expected 'valid' or 'same', got {padding!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions: {stride}")
    if len(dilation) != len(stride):
        raise RuntimeError(f"expected dilation of {len(stride)} numbers, got {dilation}")
    return [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]


def _padded_at_the_end(
    input: Tensor, weight: Tensor, dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input, padded at its far ends, and the padding that ``same`` still asks for."""
    totals = _same_padding("same", weight, (1,) * len(dilation), dilation)
    if not torch.compiler.is_compiling():  # Dynamo cannot trace a warning
        warnings.warn(
            "Using padding='same' with even kernel lengths and odd dilation may require a "
            "zero-padded copy of the input be created",
            stacklevel=5,
        )
    ends = [extra for total in reversed(totals) for extra in (0, total % 2)]
    return torch.nn.functional.pad(input, ends), tuple(total // 2 for total in totals)


@overridable(torch.nn.functional.conv1d)
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve over one dim; drop-in for :func:`torch.nn.functional.conv1d`.

    Args:
        input: ``(N, C_in, L)`` or ``(C_in, L)``.
        weight: ``(C_out, C_in / groups, K)``.
        bias: ``(C_out,)`` or ``None``.
        stride: Step of the kernel, >= 1.
        padding: Zeros added at both ends, ``"valid"`` (none) or ``"same"`` (output length L).
        dilation: Distance between kernel elements, >= 1.
        groups: Number of separate groups of channels; divides C_in and C_out.

    Returns:
        ``(N, C_out, (L + 2 padding - dilation (K - 1) - 1) // stride + 1)``, or without N; in the
        autocast dtype under autocast.

    Raises:
        RuntimeError: Shapes, dtypes or settings that do not fit.
        TypeError: ``input``, ``weight`` or ``bias`` is not a Tensor.
    """
    return convolve("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


@overridable(torch.nn.functional.conv2d)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve over two dims; drop-in for :func:`torch.nn.functional.conv2d`.

    Args:
        input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``.
        weight: ``(C_out, C_in / groups, K_h, K_w)``.
        bias: ``(C_out,)`` or ``None``.
        stride: Step of the kernel, >= 1; one number or one for each dim, like the next two.
        padding: Zeros added at both ends, ``"valid"`` (none) or ``"same"`` (output size H, W).
        dilation: Distance between kernel elements, >= 1.
        groups: Number of separate groups of channels; divides C_in and C_out.

    Returns:
        ``(N, C_out, H_out, W_out)`` with H_out, W_out as in :func:`conv1d`, or without N; in the
        autocast dtype under autocast.

    Raises:
        RuntimeError: Shapes, dtypes or settings that do not fit.
        TypeError: ``input``, ``weight`` or ``bias`` is not a Tensor.
    """
    return convolve("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)
