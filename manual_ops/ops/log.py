"""Natural logarithm.

Forward:   y = log x
Backward:  dL/dx = dL/dy / x
Tangent:   y' = x' / x

Here so that softmax, logarithm and negative log-likelihood can be chained as separate ops, the
way the softmax loss is usually derived; ``cross_entropy`` is the same in one step that cannot
overflow. Source: the inverse-function rule, x = exp(y).
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._precision import accumulate_wide, full_precision


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    return tangent / input


_log = bind_pointwise(torch.log, _chain, save="input")


def log(input: Tensor) -> Tensor:
    """Apply the natural logarithm elementwise; drop-in for :func:`torch.log`.

    Args:
        input: Any shape, real dtype; ``log(0)`` is ``-inf`` and of a negative number NaN.

    Returns:
        Same shape as ``input``; float32 for half inputs under CUDA autocast.

    Raises:
        TypeError: ``input`` is no tensor.
    """
    (input_,) = full_precision(input, on_cpu=False)
    output: Tensor = _log(input_)
    return output
