"""What the elementwise losses share: reduction, its legacy arguments, and the chain rule.

Index convention: ``i`` runs over the N elements of input x and target t; l[i] is the loss of one
of them, y the op's output, L what is differentiated in the end.

Forward:   y = l (reduction none), sum_i l[i] (sum) or sum_i l[i] / N (mean)
Backward:  dL/dx[i] = r[i] dl[i]/dx[i],  dL/dt[i] = r[i] dl[i]/dt[i]
           r[i] = dL/dy[i] (none), dL/dy (sum) or dL/dy / N (mean)
Tangent:   l'[i] = dl[i]/dx[i] x'[i] + dl[i]/dt[i] t'[i], reduced like l
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.nn import _reduction

from .._apply import bind
from .._fuse import fusible
from ._refusal import no_tensor


def resolve_reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """Return the reduction that torch's deprecated ``size_average`` and ``reduce`` stand for.

    Raises:
        ValueError: ``reduction`` is none of ``none``, ``mean``, ``sum``.
    """
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_string(size_average, reduce)
    if reduction == "elementwise_mean":
        _reduction.get_enum(reduction)  # warns that it is deprecated
        return "mean"
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(
            f"{reduction} is not a valid value for reduction: expected none, mean or sum"
        )
    return reduction


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Apply ``reduction`` to elementwise losses (or to their tangents: it is linear)."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def bind_pointwise_loss(
    forward: Callable[..., Tensor],
    input_slope: Callable[..., Tensor],
    target_slope: Callable[..., Tensor],
    expects: str,
) -> Callable[..., Any]:
    """Return a callable that runs ``y = reduce_i l(x[i], t[i], *weights[i])``.

    Args:
        forward: ``(input, target, *weights, reduction) -> loss``; input and target of one shape.
        input_slope: ``(r, input, target, *weights) -> r dl/dx``.
        target_slope: The same with dl/dt.
        expects: What the arguments have to be, for error messages.
    """
    of_input, of_target = fusible(input_slope), fusible(target_slope)

    class PointwiseLoss(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(
            input: Tensor, target: Tensor, reduction: str, *weights: Tensor | None
        ) -> Tensor:
            return forward(input, target, *weights, reduction)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            input, target, ctx.reduction, *weights = inputs
            ctx.save_for_backward(input, target, *weights)
            ctx.save_for_forward(input, target, *weights)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            input, target, *weights = ctx.saved_tensors
            if ctx.reduction == "mean":
                grad_output = grad_output / max(input.numel(), 1)
            grad_input = grad_target = None
            if ctx.needs_input_grad[0]:
                grad_input = of_input(grad_output, input, target, *weights)
            if ctx.needs_input_grad[1]:
                grad_target = of_target(grad_output, input, target, *weights)
            return grad_input, grad_target, None, *(None for _ in weights)

        @staticmethod
        def jvp(ctx: Any, input_tangent: Tensor, target_tangent: Tensor, *_: None) -> Tensor:
            saved = ctx.saved_tensors
            tangent = input_slope(input_tangent, *saved)
            if target_tangent is not None:
                tangent = tangent + target_slope(target_tangent, *saved)
            return reduced(tangent, ctx.reduction)

    return bind(PointwiseLoss, expects, home=input_slope.__module__)


def check_constant_weights(op: str, **weights: Tensor | None) -> None:
    """Raise torch's error where a weight that has no gradient formula requires grad."""
    for name, weight in weights.items():
        if weight is not None and not isinstance(weight, Tensor):
            raise no_tensor(op, **{name: weight})
        if weight is not None and weight.requires_grad:
            raise RuntimeError(
                f"{op} is not differentiable with respect to argument '{name}'. "
                "This input cannot have requires_grad True."
            )
