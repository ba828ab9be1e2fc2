"""What softmax and log_softmax share: arguments, the Function, and backward by blocks of rows."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._blocks import block_length
from .._fuse import fusible
from .._modes import may_overwrite
from .._precision import full_precision
from ._refusal import no_tensor


def bind_softmax(
    forward: Callable[..., Tensor], backward: Callable[..., Tensor], tangent: Callable[..., Tensor]
) -> Callable[..., Any]:
    """Return a callable that runs an op along one dim whose derivatives need its output alone.

    Args:
        forward: ``(input, dim) -> output``.
        backward: ``(grad_output, output, dim, out=None) -> grad_input``, from differentiable
            torch ops; where ``out`` is given, it works in it and leaves the result there.
        tangent: ``(input_tangent, output, dim) -> output_tangent``.
    """

    def by_blocks(grad_output: Tensor, output: Tensor, dim: int) -> Tensor:
        if not may_overwrite(grad_output):
            return backward(grad_output, output, dim)
        grad_input = torch.empty_like(output)
        independent = output.dim() > 1 and dim not in (0, -output.dim())
        if not independent or (length := block_length(output)) >= output.shape[0]:
            return backward(grad_output, output, dim, out=grad_input)
        for i in range(0, output.shape[0], length):
            block = slice(i, i + length)
            backward(grad_output[block], output[block], dim, out=grad_input[block])
        return grad_input

    evaluate = fusible(backward, by_blocks)

    class Softmax(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(input: Tensor, dim: int) -> Tensor:
            return forward(input, dim)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            _input, ctx.dim = inputs
            ctx.save_for_backward(output)
            ctx.save_for_forward(output)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            (output,) = ctx.saved_tensors
            return evaluate(grad_output, output, ctx.dim), None

        @staticmethod
        def jvp(ctx: Any, input_tangent: Tensor, _dim: None) -> Tensor:
            (output,) = ctx.saved_tensors
            return tangent(input_tangent, output, ctx.dim)

    expects = "input of floating dtype, dim in [-input.dim(), input.dim())"
    return bind(Softmax, expects, eager_forward=forward, home=backward.__module__)


def prepare(
    input: Tensor, dim: int | None, dtype: torch.dtype | None, name: str, stacklevel: int
) -> tuple[Tensor, int]:
    """Resolve ``dim=None`` and the dtype of softmax and log_softmax as torch does."""
    if not isinstance(input, Tensor):
        raise no_tensor(name, input=input)
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel + 1,  # the decorator's
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if dtype is not None:
        return input.to(dtype), dim
    return full_precision(input, on_cpu=False)[0], dim
