"""Call a hand-written op the fastest correct way: eagerly, under torch.func, under Dynamo."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def bind(op: type[Function], eager_forward: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a callable that runs ``op``, with the positional signature of ``op.forward``.

    An op is written once, with ``forward`` free of ctx, ``setup_context``, ``backward`` and
    ``jvp``. Four facts of torch 2.6 to 2.15 make one class too few:

    * ``apply`` of a class with ``setup_context`` calls ``inspect.signature`` every time; a class
      whose ``forward`` takes ctx does not, but only the former works under torch.func.
    * Dynamo refuses a class that defines ``jvp`` ("Unsupported custom jvp") and cannot read
      attributes off a Function class; classes captured in a closure are fine.
    * Where Dynamo traces inside a transform, no Function can be mapped ("vmap over
      ApplyTemplate"): there PyTorch differentiates the plain formula, ``op.forward``.
    * Where nothing is to be differentiated a Function is only overhead: ``forward`` is called.

    Args:
        op: Function with ``forward``, ``setup_context``, ``backward`` and ``jvp``.
        eager_forward: The same function as ``op.forward`` by a fused kernel that torch.func
            cannot map or differentiate; used outside torch.func and Dynamo.
    """
    forward, setup_context = op.forward, op.setup_context
    eager_forward = eager_forward or forward

    def forward_with_ctx(ctx: Any, *args: Any) -> Any:
        output = eager_forward(*args)
        setup_context(ctx, args, output)
        return output

    members = {"backward": staticmethod(op.backward), "jvp": staticmethod(op.jvp)}
    eager: type[Function] = type(
        op.__name__, (Function,), {"forward": staticmethod(forward_with_ctx), **members}
    )
    traced: type[Function] = type(op.__name__, (op,), {"jvp": staticmethod(Function.jvp)})

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            if torch._C._are_functorch_transforms_active():
                return forward(*args)
            return traced.apply(*args)
        if torch._C._are_functorch_transforms_active():
            return op.apply(*args)
        if _is_differentiated(args):
            return eager.apply(*args)
        return eager_forward(*args)

    return apply


def bind_pointwise(
    forward: Callable[..., Tensor],
    chain: Callable[..., Tensor],
    *,
    save: Literal["input", "output"],
) -> Callable[..., Any]:
    """Return a callable that runs an elementwise function ``y = f(x, *params)``.

    The Jacobian of an elementwise function is diagonal, so one product serves both modes:
    ``dL/dx = dL/dy f'(x)`` backward and ``y' = x' f'(x)`` forward.

    Args:
        forward: ``(input, *params) -> output``; params are Python scalars.
        chain: ``(cotangent_or_tangent, saved, *params) -> product with f'``, from differentiable
            torch ops, so that every further order follows.
        save: What ``f'`` is computed from. Prefer ``"output"``: the next layer often saves the
            same tensor, and then it costs nothing.
    """

    class Pointwise(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(input: Tensor, *params: Any) -> Tensor:
            return forward(input, *params)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            saved = output if save == "output" else inputs[0]
            ctx.params = inputs[1:]
            ctx.save_for_backward(saved)
            ctx.save_for_forward(saved)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            (saved,) = ctx.saved_tensors
            return chain(grad_output, saved, *ctx.params), *(None for _ in ctx.params)

        @staticmethod
        def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> Tensor:
            (saved,) = ctx.saved_tensors
            return chain(input_tangent, saved, *ctx.params)

    return bind(Pointwise)


def may_overwrite(grad_output: Tensor) -> bool:
    """Whether a backward may work in place on its own fresh temporaries.

    True for plain first-order eager backward. False where another layer watches the arithmetic:
    a graph is being built on it (double backward), Dynamo traces it, forward mode carries
    tangents through it, or ``grad_output`` is a batch of vectors (a temporary that does not
    depend on it is too small to hold the result).
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or _forward_ad_active()
        or torch._C._functorch.is_functorch_wrapped_tensor(grad_output)
        or torch._C._functorch.is_legacy_batchedtensor(grad_output)
    )


def _is_differentiated(args: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return _forward_ad_active()


def _forward_ad_active() -> bool:
    return forward_ad._current_level >= 0
