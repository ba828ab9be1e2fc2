"""Call a hand-written op the fastest correct way: eagerly, under torch.func, under Dynamo."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from ._fuse import fusible
from ._modes import forward_ad_active, may_overwrite

# By one name: each lookup counts, in every call of every op.
_transforms_are_active = torch._C._are_functorch_transforms_active


def bind(
    op: type[Function],
    expects: str,
    eager_forward: Callable[..., Any] | None = None,
    bare_forward: Callable[..., Any] | None = None,
    home: str = "",
) -> Callable[..., Any]:
    """Return a callable that runs ``op``, with the positional signature of ``op.forward``.

    An op is written once, with ``forward`` free of ctx, ``setup_context``, ``backward`` and
    ``jvp``. Five facts of torch 2.13 to 2.15 make one class too few:

    * ``apply`` of a class with ``setup_context`` calls ``inspect.signature`` every time; a class
      whose ``forward`` takes ctx does not, but only the former works under torch.func.
    * Dynamo refuses a class that defines ``jvp`` ("Unsupported custom jvp") and cannot read
      attributes off a Function class; classes captured in a closure are fine. It also refuses
      one tensor in two places ("duplicate tensor input").
    * Where Dynamo traces inside a transform, no Function can be mapped ("vmap over
      ApplyTemplate"): there PyTorch differentiates the plain formula, ``op.forward``.
    * torch.func needs two more things of ``jvp`` and ``setup_context``, see ``_Nestable``.
    * Where nothing is to be differentiated a Function is only overhead: ``forward`` is called.

    And ``torch.jit.trace`` records ``forward``: it can neither save a Function nor differentiate
    one.

    Args:
        op: Function with ``forward``, ``setup_context``, ``backward`` and ``jvp``. What it saves
            for backward is what it saves for forward, with None for what it can do without.
        expects: What the arguments have to be; added to the message where they are not.
        eager_forward: The same function as ``op.forward`` by a fused kernel that torch.func
            cannot map or differentiate; used outside torch.func and Dynamo.
        bare_forward: The same without what backward alone needs, None in its place; used where
            nothing is to be differentiated.
        home: Module of the op, which gives it its name and derivation, where several share the
            class.
    """
    forward = op.forward
    eager_forward = eager_forward or forward
    bare_forward = bare_forward or eager_forward
    home = home or op.__module__
    eager = _eager(op, home, eager_forward)
    transformed, traced = _transformed(op, home), _traced(op, home)
    names = _argument_names(op)

    def apply(*args: Any) -> Any:
        if is_compiling():
            if _transforms_are_active():
                return forward(*args)
            return traced.apply(*_distinct(args))
        try:
            if _transforms_are_active():
                return transformed.apply(*args)
            if torch._C._is_tracing():
                return forward(*args)
            if _is_differentiated(args):
                return eager.apply(*args)
            return bare_forward(*args)
        except _ARGUMENT_ERRORS as error:
            told = _explained(error, f"Expected {expects}.\nFound {_described(names, args)}.")
            if told is None:
                raise
            raise told from error

    return apply


def _eager(op: type[Function], home: str, forward: Callable[..., Any]) -> type[Function]:
    """Return the twin whose ``forward`` takes ctx."""
    setup_context = op.setup_context

    def forward_with_ctx(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    members = {"forward": forward_with_ctx, "backward": op.backward, "jvp": op.jvp}
    return _twin(op, home, Function, **members)


def _transformed(op: type[Function], home: str) -> type[Function]:
    """Return the twin for torch.func."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        op.setup_context(_Nestable(ctx), inputs, output)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            return op.jvp(_Nestable(ctx), *tangents)

    return _twin(op, home, op, setup_context=setup_context, jvp=jvp)


def _traced(op: type[Function], home: str) -> type[Function]:
    """Return the twin for Dynamo, without ``jvp``."""
    return _twin(op, home, op, jvp=Function.jvp)


def _distinct(args: tuple[Any, ...]) -> list[Any]:
    """Return ``args`` with a view for each tensor that stands there already (q = k = v)."""
    distinct: list[Any] = []
    for arg in args:
        again = isinstance(arg, Tensor) and any(arg is other for other in distinct)
        distinct.append(arg.view_as(arg) if again else arg)
    return distinct


def _twin(
    op: type[Function], home: str, base: type, **members: Callable[..., Any]
) -> type[Function]:
    namespace: dict[str, Any] = {k: staticmethod(v) for k, v in members.items()}
    op_name = home.rpartition(".")[2]
    # What the op and its arguments are called, and where its derivation stands: for
    # manual_ops.trace.
    namespace |= {
        "__module__": home,
        "op_name": op_name,
        "argument_names": _argument_names(op),
    }
    return type(op.__name__ if home == op.__module__ else op_name, (base,), namespace)


def _argument_names(op: type[Function]) -> tuple[str, ...]:
    return tuple(inspect.signature(op.forward).parameters)


_ARGUMENT_ERRORS = (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


def _explained(error: Exception, explanation: str) -> Exception | None:
    """Return ``error`` with an explanation; None for what no argument is to blame for."""
    if isinstance(error, UnicodeDecodeError):  # a uint8 label, printed as a character
        error = IndexError("Target is out of bounds.")
    if type(error) not in _ARGUMENT_ERRORS:  # out of memory, say
        return None
    return type(error)(f"{error}\n{explanation}")


def _described(names: tuple[str, ...], args: tuple[Any, ...]) -> str:
    return ", ".join(
        f"{name} {tuple(arg.shape)} {arg.dtype}" if isinstance(arg, Tensor) else f"{name}={arg!r}"
        for name, arg in zip(names, args, strict=False)
    )


class _Nestable:
    """A ctx as torch.func's nested levels need it.

    * ``vmap`` keeps one list of batch dims for what is saved for backward and for forward, the
      later call's: both lists are made the longer one.
    * ``jvp`` is called with forward mode switched off, so that a jvp of a jvp would silently be 0.
      Switched on again, it needs saved tensors without the tangents that it is about to replace.
    """

    def __init__(self, ctx: Any) -> None:
        self.__dict__["_ctx"] = ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._ctx, name, value)

    def save_for_backward(self, *_: Tensor | None) -> None:
        pass

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        self._ctx.save_for_backward(*tensors)
        self._ctx.save_for_forward(*tensors)

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(
            None if t is None else forward_ad.unpack_dual(t).primal for t in self._ctx.saved_tensors
        )


def bind_pointwise(
    forward: Callable[..., Tensor],
    chain: Callable[..., Tensor],
    *,
    save: Literal["input", "output"],
    in_place: Callable[..., Tensor] | None = None,
    overwrite: Callable[..., Tensor] | None = None,
) -> Any:
    """Return a callable that runs an elementwise function ``y = f(x, *params)``.

    The callable's attribute ``overwriting`` is another one, which writes y into x and returns that.

    The Jacobian of an elementwise function is diagonal, so one product serves both modes:
    ``dL/dx = dL/dy f'(x)`` backward and ``y' = x' f'(x)`` forward. For complex x backward takes
    the conjugate of f'(x), by PyTorch's convention for gradients of real losses.

    Args:
        forward: ``(input, *params) -> output``; params are Python scalars.
        chain: ``(cotangent_or_tangent, saved, *params) -> product with f'``, from differentiable
            torch ops, so that every further order follows.
        save: What ``f'`` is computed from. Prefer ``"output"``: the next layer often saves the
            same tensor, and then it costs nothing.
        in_place: The same as ``chain`` for plain eager backward, in as few passes over memory as
            possible: ``(cotangent, saved, *params, out) -> out`` of one floating dtype, which
            works in ``out``; see ``blockwise``.
        overwrite: The same as ``forward``, written into ``input``. With ``save="output"`` the one
            tensor is then all that is saved, as the next layer's input.
    """
    evaluate = fusible(chain, in_place_where_allowed(chain, in_place) if in_place else chain)

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
            if saved.is_complex():  # conj(f'(x)) = f'(conj(x)) for the analytic functions here
                saved = saved.conj()
            return evaluate(grad_output, saved, *ctx.params), *(None,) * len(ctx.params)

        @staticmethod
        def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> Tensor:
            (saved,) = ctx.saved_tensors
            return chain(input_tangent, saved, *ctx.params)

    class Overwriting(Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor, *params: Any) -> Tensor:
            assert overwrite
            overwrite(input, *params)
            ctx.params = params
            ctx.mark_dirty(input)
            ctx.save_for_backward(input)
            return input

        backward = Pointwise.backward

    home = chain.__module__
    expects = "input a tensor of floating dtype (float32, float64, ...)"
    apply: Any = bind(Pointwise, expects, eager_forward=forward, home=home)
    in_its_place = _twin(Pointwise, home, Overwriting)

    def overwriting(input: Tensor, *params: Any) -> Tensor:
        if overwrite and save == "output" and _is_plain_intermediate(input):
            result: Tensor = in_its_place.apply(input, *params)
            return result
        output = apply(input if save == "output" else torch.clone(input), *params)
        return input.copy_(output)

    apply.overwriting = overwriting
    return apply


def _is_plain_intermediate(input: Tensor) -> bool:
    """Whether a Function may overwrite ``input``: in eager reverse mode, no leaf and no view."""
    return isinstance(input, Tensor) and not (
        is_compiling()
        or _transforms_are_active()
        or forward_ad_active()
        or input.is_leaf
        or input._is_view()
    )


def in_place_where_allowed(
    chain: Callable[..., Tensor], in_place: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Return ``chain``, by way of ``in_place`` in plain eager backward; see ``bind_pointwise``."""

    def evaluate(grad_output: Tensor, saved: Tensor, *params: Any) -> Tensor:
        same = grad_output.dtype == saved.dtype and saved.is_floating_point()
        if same and may_overwrite(grad_output):
            return in_place(grad_output, saved, *params, out=torch.empty_like(saved))
        return chain(grad_output, saved, *params)

    return evaluate


def _is_differentiated(args: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad and not arg.is_inference():
                return True
    return forward_ad_active()
