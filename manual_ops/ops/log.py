"""Natural logarithm.

Forward:   y = log x
Backward:  dL/dx = dL/dy / x
Tangent:   y' = x' / x

Here so that softmax, logarithm and negative log-likelihood can be chained as separate ops, the
way the softmax loss is usually derived; ``cross_entropy`` does the same in one step that never
takes the logarithm of an underflowed 0. From x = exp(y): dy/dx = 1 / (dx/dy) = 1 / exp(y) = 1 / x.
Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), section 4.1.
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._overridable import overridable
from .._precision import accumulate_wide, full_precision


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    return tangent / input


_log = bind_pointwise(torch.log, _chain, save="input")


@overridable(torch.log)
def log(input: Tensor) -> Tensor:
    """Apply the natural logarithm elementwise; drop-in for :func:`torch.log`.

    Args:
        input: Any shape, real or complex dtype. ``log(0)`` is ``-inf``, and of a negative real NaN.

    Returns:
        Same shape as ``input``; float32 for half inputs under CUDA autocast.

    Raises:
        TypeError: ``input`` is not a Tensor.
    """
    (input_,) = full_precision(input, on_cpu=False)
    output: Tensor = _log(input_)
    return output
