"""Softmax over one dim.

Index convention: ``i``, ``j`` run over the dim, all others are batch dims.

Forward:   p[i] = exp(x[i]) / sum_j exp(x[j])          (the kernel subtracts max x first)
Jacobian:  dp[i]/dx[j] = p[i] (delta_ij - p[j]),  that is  diag(p) - p p^T
Backward:  dL/dx[j] = sum_i dL/dp[i] p[i] (delta_ij - p[j]) = p[j] (dL/dp[j] - sum_i dL/dp[i] p[i])
Tangent:   p' = p (x' - sum_j p[j] x'[j])

The Jacobian is symmetric, so backward and tangent are the same product. Only the output is
needed. Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network
Outputs (1990).
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import may_overwrite
from .._precision import accumulate_wide, full_precision


@accumulate_wide
def _times_jacobian(vector: Tensor, output: Tensor, dim: int) -> Tensor:
    product = vector * output
    out = product if may_overwrite(vector) else None
    return torch.addcmul(product, output, product.sum(dim, keepdim=True), value=-1, out=out)


class _Softmax(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return torch.softmax(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _input, ctx.dim = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        return _times_jacobian(grad_output, output, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, _dim: None) -> Tensor:
        (output,) = ctx.saved_tensors
        return _times_jacobian(input_tangent, output, ctx.dim)


_softmax = bind(_Softmax, "input of floating dtype, dim in [-input.dim(), input.dim())")


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Apply softmax over ``dim``; drop-in for :func:`torch.nn.functional.softmax`.

    Args:
        input: Any shape, floating dtype.
        dim: Dim that sums to 1. ``None`` picks one with a warning, as torch does.
        _stacklevel: Frames between the warning and the user's code.
        dtype: Cast ``input`` to this dtype first.

    Returns:
        Same shape as ``input``, values in [0, 1]; float32 for half inputs under CUDA autocast.

    Raises:
        IndexError: ``dim`` out of range.
    """
    input, dim = prepare(input, dim, dtype, "softmax", _stacklevel)
    output: Tensor = _softmax(input, dim)
    return output


def prepare(
    input: Tensor, dim: int | None, dtype: torch.dtype | None, name: str, stacklevel: int
) -> tuple[Tensor, int]:
    """Resolve ``dim=None`` and the dtype of softmax and log_softmax as torch does."""
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if dtype is not None:
        return input.to(dtype), dim
    (input_,) = full_precision(input, on_cpu=False)
    assert input_ is not None
    return input_, dim
