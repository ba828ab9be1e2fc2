"""The autograd graph from outside: its Functions, what they save, what their backward does."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manual_ops.check.exam import draw_like

Tensors = tuple[Tensor, ...]


def pull_back(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor] = (),
    *,
    retain_graph: bool = False,
) -> Tensors:
    """Gradients by those of ``leaves`` that require them; zeros where there is none.

    Args:
        outputs: Those that depend on none of ``leaves`` are passed over.
        leaves: Inputs.
        cotangents: One for each output; by default the same random ones in every call.
        retain_graph: Whether backward is to be called again.
    """
    cotangents = cotangents or draw_like(outputs, 1)
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    found: Tensors = torch.autograd.grad(
        [output for output, _ in pairs],
        [leaf for leaf in leaves if leaf.requires_grad],
        [cotangent for _, cotangent in pairs],
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return found


def function_nodes(outputs: Iterable[Tensor]) -> list[Any]:
    """The nodes of Functions that ``outputs`` depend on, each the ctx of its call.

    Those of torch itself (activation checkpointing, say) are nobody's to mend, and left out.
    """
    return [n for n in _nodes_in_python(outputs) if _home(n).split(".")[0] != "torch"]


def has_library_op(outputs: Iterable[Tensor]) -> bool:
    """Whether ``outputs`` depend on an op whose backward was given to ``torch.library``."""
    return any(_home(node) == "torch._library.autograd" for node in _nodes_in_python(outputs))


def _home(node: Any) -> str:
    return str(node._forward_cls.__module__)


def _nodes_in_python(outputs: Iterable[Tensor]) -> list[Any]:
    return [node for node in nodes_behind(outputs) if isinstance(node, BackwardCFunction)]


def nodes_behind(outputs: Iterable[Tensor]) -> Iterable[Any]:
    """All nodes of the graph that ``outputs`` depend on."""
    nodes: dict[Any, None] = {}
    stack: list[Any] = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes[node] = None
            stack += [parent for parent, _ in node.next_functions]
    return nodes


def function_name(node: Any) -> str:
    """Name of the Function that ``node`` is a call of."""
    return str(node._forward_cls.__name__)


def argument_names(node: Any) -> list[str]:
    """Names of the arguments of the Function that ``node`` is a call of."""
    cls, count = node._forward_cls, len(node.needs_input_grad)
    takes_ctx = cls.setup_context is Function.setup_context
    named = [
        p.name
        for p in inspect.signature(cls.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ][takes_ctx:]
    return [*named[:count], *(f"argument {i}" for i in range(len(named), count))]


def tensors_on(node: Any) -> list[tuple[str, Tensor]]:
    """The tensors that a Function keeps as attributes of ctx, by where they are."""
    return list(_tensors_in("ctx", vars(node), set()))


def _tensors_in(place: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors in ``value``, in containers and closures in it."""
    if isinstance(value, Tensor):
        yield place, value
    if isinstance(value, Tensor) or id(value) in seen:
        return
    seen.add(id(value))
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        form = "{}.{}" if place == "ctx" else "{}[{!r}]"
        parts = ((form.format(place, key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set)):
        parts = ((f"{place}[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        parts = ((f"{place} (closure over {name})", c.cell_contents) for name, c in cells)
    for inner, part in parts:
        yield from _tensors_in(inner, part, seen)


@dataclass(frozen=True)
class BackwardCall:
    """One call of a Function's backward.

    Attributes:
        node: The Function's node, its ctx.
        modified: Indices of the gradients it was given that it changed.
        returned: What it returned, before autograd sums and casts it.
        aten: The ATen calls it made.
    """

    node: Any
    modified: tuple[int, ...]
    returned: tuple[Any, ...]
    aten: "AtenCalls"

    @property
    def wasted(self) -> list[str]:
        """Names of the ATen calls that go into no gradient asked for."""
        pairs = zip(self.returned, self.node.needs_input_grad, strict=False)
        return self.aten.wasted([g for g, needed in pairs if needed and g is not None])


@contextmanager
def recorded(nodes: Iterable[Any]) -> Iterator[list[BackwardCall]]:
    """Record the calls of backward of the Functions of ``nodes``."""
    calls: list[BackwardCall] = []

    def recording(backward: Callable[..., Any]) -> Callable[..., Any]:
        def record(ctx: Any, *gradients: Tensor | None) -> Any:
            given = Snapshot(dict(enumerate(gradients)))
            with AtenCalls() as aten:
                returned = backward(ctx, *gradients)
            several = returned if isinstance(returned, tuple) else (returned,)
            calls.append(BackwardCall(ctx, tuple(given.changed()), several, aten))
            return returned

        return record

    classes = {node._forward_cls: None for node in nodes}
    methods = [(cls, "backward" if cls.vjp is Function.vjp else "vjp") for cls in classes]
    # All before any is replaced, since one class may inherit another's.
    found = [(getattr(cls, name), vars(cls).get(name)) for cls, name in methods]
    try:
        for (cls, name), (backward, _) in zip(methods, found, strict=True):
            setattr(cls, name, staticmethod(recording(backward)))
        yield calls
    finally:
        for (cls, name), (_, own) in zip(methods, found, strict=True):
            if own is None:
                delattr(cls, name)
            else:
                setattr(cls, name, own)


class Snapshot:
    """Tensors, by name, as they were; what has no tensor is left out."""

    def __init__(self, named: dict[Any, Any]) -> None:
        self._kept = {
            name: (tensor, tensor._version, tensor.detach().clone())
            for name, tensor in named.items()
            if isinstance(tensor, Tensor)
        }

    def changed(self) -> list[Any]:
        """Names of the tensors that have been written to or have other values now."""
        return [
            name
            for name, (tensor, version, value) in self._kept.items()
            if tensor._version != version or not same_bits(tensor, value)
        ]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, nan being equal to nan."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@dataclass
class Saved:
    """What was saved for backward, as saved-tensor hooks see it.

    Attributes:
        tensors: In the order in which they were saved.
        reads: How often each has been read.
    """

    tensors: list[Tensor]
    reads: list[int]

    def bytes(self, *others: Tensor) -> int:
        """Bytes of the distinct storages of what was saved and of ``others``."""
        storages = {_storage(t): _bytes(t) for t in (*self.tensors, *others)}
        return sum(storages.values())


@contextmanager
def saving(copy: bool = False) -> Iterator[Saved]:
    """Watch what is saved for backward; with ``copy``, save copies as offloading would."""
    saved = Saved([], [])

    def pack(tensor: Tensor) -> int:
        saved.tensors.append(tensor.detach().clone() if copy else tensor)
        saved.reads.append(0)
        return len(saved.reads) - 1

    def unpack(index: int) -> Tensor:
        saved.reads[index] += 1
        return saved.tensors[index]

    with saved_tensors_hooks(pack, unpack):
        yield saved


class AtenCalls(TorchDispatchMode):
    """The ATen calls made while active, and which tensors they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, list[Tensor], list[Tensor]]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self._calls.append((func, _tensors((args, kwargs)), _tensors(output)))
        return output

    def wasted(self, results: Sequence[Tensor]) -> list[str]:
        """Names of the calls whose output goes into none of ``results``.

        Views and allocations cost nothing. A call that returns no tensor may steer the others.
        """
        live = {_storage(tensor) for tensor in results}
        wasted = []
        for func, read, written in reversed(self._calls):
            name = func.overloadpacket.__name__
            sources = {_storage(tensor) for tensor in read}
            targets = {_storage(tensor) for tensor in written}
            if not targets or targets & live:
                live |= sources
                continue
            is_view = targets <= sources and not func._schema.is_mutable
            if sources and not is_view and "empty" not in name:
                wasted.append(name)
        return wasted[::-1]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind ``tensor``, as long as that lives."""
    return id(tensor) if _is_sparse(tensor) else tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    if _is_sparse(tensor):
        return int(tensor._nnz()) * tensor.element_size()
    return tensor.untyped_storage().nbytes()


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided
