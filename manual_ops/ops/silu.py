"""Sigmoid linear unit, also called swish.

Forward:   y = x s,  s = 1 / (1 + exp(-x))
Backward:  dL/dx = dL/dy * s (1 + x (1 - s))
Tangent:   y' = x' * s (1 + x (1 - s))

By the product rule, with ds/dx = s (1 - s): dy/dx = s + x s (1 - s).
Source: Ramachandran, Zoph and Le, Searching for Activation Functions (2017); Hendrycks and Gimpel,
Gaussian Error Linear Units (2016).
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._blocks import blockwise
from .._overridable import overridable
from .._precision import accumulate_wide


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    s = torch.sigmoid(input)
    return tangent * s * (1 + input * (1 - s))


@blockwise
@accumulate_wide
def _in_place(tangent: Tensor, input: Tensor, *, out: Tensor) -> Tensor:
    s = torch.sigmoid(input)
    rest = torch.addcmul(input, input, s, value=-1, out=out)  # x (1 - s)
    return torch.addcmul(s, s, rest, out=out).mul_(tangent)


_silu = bind_pointwise(torch.nn.functional.silu, _chain, save="input", in_place=_in_place)


@overridable(torch.nn.functional.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Apply ``x * sigmoid(x)`` elementwise; drop-in for :func:`torch.nn.functional.silu`.

    Args:
        input: Any shape, floating dtype.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``.

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is not a Tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    output: Tensor = _silu.overwriting(input) if inplace else _silu(input)
    return output
