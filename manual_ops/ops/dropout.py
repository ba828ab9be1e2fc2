"""Dropout with probability ``p``.

Forward:   y[i] = x[i] m[i] / (1 - p),  m[i] = 0 with probability p, else 1, drawn for each call
Backward:  dL/dx[i] = dL/dy[i] m[i] / (1 - p)
Tangent:   y'[i] = x'[i] m[i] / (1 - p)

Given the mask the function is linear and diagonal. The factor keeps the expectation at x, so that
evaluation is the identity. The mask is saved as one byte an element, not as floats. It is torch's
own: under one seed both drop the same elements.
Source: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting (2014).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import may_overwrite
from .._overridable import overridable
from ._refusal import no_tensor


class _Dropout(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, p: float) -> tuple[Tensor, Tensor]:
        if p == 1:  # one mask element for all, nothing to draw
            mask = torch.zeros((), dtype=torch.bool, device=input.device)
            return input * mask, mask
        return torch.native_dropout(input, p, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _input, p = inputs
        _output, mask = output
        ctx.scale = 0.0 if p == 1 else 1 / (1 - p)
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, _grad_mask: None
    ) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        if grad_output is None:
            return None, None
        if mask.shape == grad_output.shape and may_overwrite(grad_output):
            # A product with bools takes longer than turning them into numbers first.
            return mask.to(grad_output.dtype).mul_(grad_output).mul_(ctx.scale), None
        return grad_output * mask * ctx.scale, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, _p: None) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return input_tangent * mask * ctx.scale, None


_dropout = bind(_Dropout, "input of floating dtype")


@overridable(torch.nn.functional.dropout)
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero elements at random and scale the rest; drop-in for torch's ``dropout``.

    Args:
        input: Any shape, floating dtype.
        p: Probability in [0, 1] of an element to be zeroed.
        training: If False, return ``input`` itself.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``.

    Raises:
        ValueError: ``p`` outside [0, 1].
        RuntimeError: ``inplace`` on a leaf that requires grad.
        TypeError: ``input`` is not a Tensor.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not isinstance(input, Tensor):
        raise no_tensor("dropout", input=input)
    if not training or p == 0:
        return input
    output: Tensor
    output, _mask = _dropout(input, p)
    return input.copy_(output) if inplace else output
