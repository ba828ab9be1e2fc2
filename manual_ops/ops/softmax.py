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

import torch
from torch import Tensor

from .._overridable import overridable
from .._precision import accumulate_wide
from ._softmax import bind_softmax, prepare


@accumulate_wide
def times_jacobian(
    vector: Tensor, output: Tensor, dim: int, *, out: Tensor | None = None
) -> Tensor:
    """Return the product of ``vector`` and the Jacobian, either way round."""
    product = torch.mul(vector, output, out=out)
    return torch.addcmul(product, output, product.sum(dim, keepdim=True), value=-1, out=out)


_softmax = bind_softmax(torch.softmax, times_jacobian, times_jacobian)


@overridable(torch.nn.functional.softmax)
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
        TypeError: ``input`` is not a Tensor.
    """
    input, dim = prepare(input, dim, dtype, "softmax", _stacklevel)
    output: Tensor = _softmax(input, dim)
    return output
