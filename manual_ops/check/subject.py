"""What is checked: an op as a pure function of the tensors it can be differentiated by."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import Function
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_unflatten

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A Function, callable or module, and the inputs to check it on.

    ``subject(*tensors)`` calls it with ``tensors`` in place of its differentiable inputs and
    returns its differentiable outputs. It is pure: every call draws the same random numbers and
    gets fresh copies of what the op may update in place.

    Attributes:
        name: What reports call it.
        call: Takes all leaves of the inputs, see ``leaves``.
        leaves: The inputs, flattened: tensors detached, everything else as it was given.
        names: Of each leaf.
        arguments: Indices of the leaves that are inputs, and not a module's state.
        differentiable: Indices of the leaves that gradients are taken of.
        mutable: Indices of the tensors that the op is meant to update in place.
        function_class: The Function, if ``fn`` was one.
        seed: Of the random numbers in every call.
        random: Whether it draws any.
        outputs: Indices, among the tensors it returns, of those that gradients flow through.
    """

    name: str
    call: Callable[..., Any]
    leaves: tuple[Any, ...]
    names: tuple[str, ...]
    arguments: tuple[int, ...]
    differentiable: tuple[int, ...]
    mutable: tuple[int, ...]
    function_class: type[Function] | None
    seed: int
    random: bool = False
    outputs: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any] | type[Function] | Module,
        inputs: Sequence[Any],
        keywords: Mapping[str, Any] | None = None,
        *,
        mutates: Sequence[str] = (),
        seed: int = 0,
    ) -> "Subject":
        """Take ``fn`` and its inputs apart.

        Args:
            fn: A Function (its ``apply`` is called), a callable, or a module, whose parameters and
                buffers become inputs.
            inputs: Positional inputs. Gradients are taken of the floating-point and complex tensors
                that require grad; if none does, of all of them, but for those in ``mutates`` if
                there are others.
            keywords: Keyword inputs.
            mutates: Names of tensors that ``fn`` is meant to update in place.
            seed: Of the random numbers in every call.

        Raises:
            TypeError: ``fn`` cannot be called, or no input or output can be differentiated.
            ValueError: There is no input of a name in ``mutates``.
            Exception: What ``fn`` raises when it is called.
        """
        keywords = dict(keywords or {})
        function_class = None
        parameters: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        signature: Callable[..., Any]
        if not isinstance(fn, Module):
            fn = _applied(fn) or fn
        if isinstance(fn, type) and issubclass(fn, Function):
            function_class, name, callee, signature = fn, fn.__name__, fn.apply, fn.forward
        elif isinstance(fn, Module):
            name, signature = str(fn).splitlines()[0].rstrip("("), fn.forward
            parameters = {k: p for k, p in fn.named_parameters() if p.requires_grad}
            buffers = {k: t for k, t in _named_tensors(fn) if k not in parameters}
            state_names = (*parameters, *buffers)
            callee = partial(_call_module, fn, state_names) if state_names else fn
        elif callable(fn):
            name, callee = _name(fn), fn
            signature = fn._init_fn if isinstance(fn, CustomOpDef) else fn
        else:
            raise TypeError(f"expected a Function, a callable or a module to check, got {fn!r}")

        state = [*parameters.values(), *buffers.values()]
        flat, tree = tree_flatten((tuple(inputs), keywords))
        names = (*parameters, *buffers, *_input_names(signature, inputs, keywords, function_class))
        leaves = [*state, *flat]
        unknown = set(mutates) - set(names)
        if unknown:
            raise ValueError(f"mutates names {sorted(unknown)}; the inputs are {list(names)}")
        wanted = [i for i, leaf in enumerate(leaves) if _can_differentiate(leaf)]
        asked = [i for i in wanted if leaves[i].requires_grad]
        wanted = [i for i in wanted if names[i] not in mutates or i in asked] or wanted
        # A module's own parameters do not say anything about the inputs.
        of_inputs = [i for i in wanted if i >= len(state)]
        if any(i in asked for i in of_inputs) or not of_inputs:
            chosen = asked or wanted
        else:
            chosen = [i for i in asked if i < len(state)] + of_inputs
        if not chosen:
            raise TypeError(
                f"{name} got no floating-point or complex tensor to differentiate by: "
                f"expected one among its inputs, got {[_described(leaf) for leaf in flat]}"
            )

        plain = not state and tree == tree_flatten((tuple(flat), {}))[1]

        def call(*leaves: Any) -> Any:
            if plain:
                return callee(*leaves)
            args, kwargs = tree_unflatten(list(leaves[len(state) :]), tree)
            return callee(*leaves[: len(state)], args, kwargs) if state else callee(*args, **kwargs)

        subject = cls(
            name=name,
            call=call,
            leaves=tuple(x.detach() if isinstance(x, Tensor) else x for x in leaves),
            names=names,
            arguments=tuple(range(len(state), len(leaves))),
            differentiable=tuple(chosen),
            mutable=tuple(i for i, n in enumerate(names) if n in mutates or n in buffers),
            function_class=function_class,
            seed=seed,
        )
        return subject._probed()

    def _probed(self) -> "Subject":
        """Call the op once to learn whether it is random and what it returns."""
        before = _random_state()
        with torch.enable_grad():
            output = self.call(*self.with_tensors(self.leaf_tensors()))
        random = not all(map(torch.equal, before, _random_state()))
        tensors = [o for o in tree_flatten(output)[0] if isinstance(o, Tensor)]
        smooth = [i for i, o in enumerate(tensors) if _can_differentiate(o)]
        if not smooth:
            returned = [_described(o) for o in tensors] or type(output).__name__
            raise TypeError(
                f"{self.name} returns nothing that can be differentiated: expected a "
                f"floating-point or complex tensor, got {returned}"
            )
        # If gradients flow through none of them, that is for the checks to say.
        outputs = tuple(i for i in smooth if tensors[i].requires_grad) or tuple(smooth)
        return dataclasses.replace(self, random=random, outputs=outputs)

    def __call__(self, *tensors: Tensor) -> Tensors:
        """Call the op on ``tensors``, with the random numbers of every call."""
        if self.random:
            _seed(self.seed)
        return self.unseeded(*tensors)

    def drawn(self) -> list[list[int]]:
        """The states that a call leaves the generators in: they tell how much it drew."""
        with torch.no_grad():
            self(*self.tensors)
        return [state.tolist() for state in _random_state()]

    def unseeded(self, *tensors: Tensor) -> Tensors:
        """Call the op without seeding the generator, as compiled code has to."""
        return self.differentiable_of(self.call(*self.with_tensors(tensors)))

    def with_tensors(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return all leaves, with ``tensors`` for the differentiable ones, and fresh copies."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.differentiable, tensors, strict=True):
            leaves[i] = tensor
        for i in self.mutable:
            leaves[i] = leaves[i].clone()
        return leaves

    def spared(self, leaves: Sequence[Any]) -> list[Any]:
        """Return ``leaves``, with copies for those that are differentiated by and overwritten."""
        overwritten = set(self.mutable) - set(self.buffers)
        return [leaf.clone() if i in overwritten else leaf for i, leaf in enumerate(leaves)]

    def differentiable_of(self, output: Any) -> Tensors:
        """Return the outputs among all that gradients flow through."""
        if isinstance(output, Tensor):
            return (output,)
        outputs = [o for o in tree_flatten(output)[0] if isinstance(o, Tensor)]
        return tuple(outputs[i] for i in self.outputs)

    @property
    def buffers(self) -> tuple[int, ...]:
        """Indices of the tensors that are updated in place and not differentiated by: state."""
        return tuple(i for i in self.mutable if i not in self.differentiable)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the inputs that gradients could be taken of, were they not updated in place."""
        given = (i for i in self.buffers if i in self.arguments)
        return tuple(self.names[i] for i in given if _can_differentiate(self.leaves[i]))

    @property
    def tensors(self) -> Tensors:
        """Copies of the differentiable inputs, which an op may spoil without harm."""
        return tuple(self.leaves[i].clone() for i in self.differentiable)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.names[i] for i in self.differentiable)

    def leaf_tensors(self, names: Sequence[str] | None = None) -> Tensors:
        """Return copies of the differentiable inputs; those in ``names``, or all, require grad."""
        wanted = self.tensor_names if names is None else names
        return tuple(
            tensor.requires_grad_(name in wanted)
            for name, tensor in zip(self.tensor_names, self.tensors, strict=True)
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Subject":
        """Return the op on inputs whose floating-point and complex tensors are changed."""
        leaves = tuple(change(x) if _can_differentiate(x) else x for x in self.leaves)
        return dataclasses.replace(self, leaves=leaves)

    def to(self, dtype: torch.dtype) -> "Subject":
        """Return the op on inputs of the floating-point ``dtype``, or its complex counterpart."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)

        return self.map(cast)

    def on(self, fn: "Subject") -> "Subject":
        """Return another op on the inputs of this one."""
        inputs = {
            n: getattr(self, n)
            for n in ("leaves", "names", "arguments", "differentiable", "mutable")
        }
        return dataclasses.replace(fn, **inputs)

    @property
    def described_inputs(self) -> str:
        """Dtypes, names and shapes of the tensors."""
        by_dtype: dict[str, list[str]] = {}
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if isinstance(leaf, Tensor):
                dtype = str(leaf.dtype).removeprefix("torch.")
                by_dtype.setdefault(dtype, []).append(f"{name}{list(leaf.shape)}")
        return "; ".join(f"{dtype} {', '.join(names)}" for dtype, names in by_dtype.items())


def _call_module(module: Module, names: tuple[str, ...], *leaves: Any) -> Any:
    state = dict(zip(names, leaves, strict=False))
    args, kwargs = leaves[len(names) :]
    return torch.func.functional_call(module, state, args, kwargs)


def _seed(seed: int) -> None:
    # torch.manual_seed formats a stack trace for each device that is not initialised: 0.1 ms.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])


def _named_tensors(module: Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _name(fn: Callable[..., Any]) -> str:
    if function := _applied(fn):
        return function.__name__
    if isinstance(fn, partial):
        return _name(fn.func)
    if isinstance(fn, CustomOpDef):
        return str(fn._qualname)
    return getattr(fn, "__name__", type(fn).__name__)


def _applied(fn: Callable[..., Any]) -> type[Function] | None:
    """Return the Function whose ``apply`` is ``fn``."""
    owner = getattr(fn, "__self__", None)
    is_class = isinstance(owner, type) and issubclass(owner, Function)
    return owner if is_class and getattr(fn, "__name__", "") == "apply" else None


def _input_names(
    signature: Callable[..., Any],
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    function_class: type[Function] | None,
) -> list[str]:
    """Names of the flattened inputs: those of the signature where there is one."""
    try:
        named = [
            p.name
            for p in inspect.signature(signature).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        named = []
    if function_class is not None and function_class.setup_context is Function.setup_context:
        named = named[1:]  # forward takes ctx first
    named += [f"input {i}" for i in range(len(named), len(inputs))]
    pairs = [*zip(named, inputs, strict=False), *keywords.items()]
    names = []
    for name, value in pairs:
        count = len(tree_flatten(value)[0])
        whole = count == 1 and not isinstance(value, (list, tuple, dict))
        names += [name] if whole else [f"{name}[{i}]" for i in range(count)]
    return names


def _can_differentiate(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _described(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__
    return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
