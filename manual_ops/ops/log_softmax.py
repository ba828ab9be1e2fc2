"""Logarithm of the softmax over one dim.

Index convention: ``i``, ``j`` run over the dim, all others are batch dims; p = softmax(x).

Forward:   y[i] = x[i] - log sum_j exp(x[j])           (the kernel subtracts max x first)
Jacobian:  dy[i]/dx[j] = delta_ij - p[j]
Backward:  dL/dx[j] = dL/dy[j] - p[j] sum_i dL/dy[i]
Tangent:   y'[i] = x'[i] - sum_j p[j] x'[j]

p = exp(y), so only the output is needed. Source: the log of Bridle (1990), see softmax.
"""

import torch
from torch import Tensor

from .._overridable import overridable
from .._precision import accumulate_wide
from ._softmax import bind_softmax, prepare


@accumulate_wide
def _backward(
    grad_output: Tensor, output: Tensor, dim: int, *, out: Tensor | None = None
) -> Tensor:
    total = grad_output.sum(dim, keepdim=True)
    return torch.addcmul(grad_output, torch.exp(output, out=out), total, value=-1, out=out)


@accumulate_wide
def _tangent(input_tangent: Tensor, output: Tensor, dim: int) -> Tensor:
    return input_tangent - (output.exp() * input_tangent).sum(dim, keepdim=True)


_log_softmax = bind_softmax(torch.log_softmax, _backward, _tangent)


@overridable(torch.nn.functional.log_softmax)
def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Apply ``log(softmax(x))`` over ``dim``; drop-in for torch's ``log_softmax``.

    Args:
        input: Any shape, floating dtype; finite logits of any size give finite results.
        dim: Dim whose exponentials sum to 1. ``None`` picks one with a warning, as torch does.
        _stacklevel: Frames between the warning and the user's code.
        dtype: Cast ``input`` to this dtype first.

    Returns:
        Same shape as ``input``, values <= 0; float32 for half inputs under CUDA autocast.

    Raises:
        IndexError: ``dim`` out of range.
        TypeError: ``input`` is not a Tensor.
    """
    input, dim = prepare(input, dim, dtype, "log_softmax", _stacklevel)
    output: Tensor = _log_softmax(input, dim)
    return output
