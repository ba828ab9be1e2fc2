"""Trace the code of a module, or refuse where a graph would not do what the code does."""

import functools
import operator
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from . import nn as manual_nn


def _apart(operate: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``operate`` as a function of this file.

    As itself torch.fx would write ``a += b``, which gives a new value to the name of a number too.
    """
    return functools.wraps(operate, assigned=("__name__",))(lambda a, b: operate(a, b))


IN_PLACE = {
    name: _apart(getattr(operator, name))
    for name in (
        *("iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow"),
        *("irshift", "isub", "itruediv", "ixor"),
    )
}


class _Proxy(fx.Proxy):
    """Stands for a value while code is traced; what torch.fx does not record, it refuses."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class, for torch's own code, which knows of proxies; other code expects a tensor.

        To claim to be one is no way out: torch would read the memory of a tensor here.
        """
        if _asked_by_torch():
            return type(self)
        raise fx.proxy.TraceError("its code asks for the type of a value")

    def __repr__(self) -> str:
        if _asked_by_torch():
            return super().__repr__()
        raise fx.proxy.TraceError("its code prints a value")

    def __format__(self, spec: str) -> str:
        """Let messages be made, which assertions take whether they hold or not."""
        return super().__repr__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer"):
            raise fx.proxy.TraceError(f"its code sets {name} of a value")
        super().__setattr__(name, value)


def _asked_by_torch() -> bool:
    """Whether what calls the method that calls this is code of torch."""
    return bool(sys._getframe(2).f_globals.get("__name__", "").startswith("torch."))


def _in_place_operator(operate: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method for ``a += b``, which torch.fx records as ``a + b``."""
    return lambda a, b: a.tracer.create_proxy("call_function", operate, (a, b), {})


for _name, _function in IN_PLACE.items():
    setattr(_Proxy, f"__{_name}__", _in_place_operator(_function))


class _NoOps(TorchDispatchMode):
    """Refuses to compute anything: it would be computed once, now, instead of at every call."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise fx.proxy.TraceError(f"its code computes {func} from none of its arguments")


class Tracer(fx.Tracer):
    """Traces the code of a module down to layers, and to what has to be called as a whole.

    Args:
        module: What is traced.
        rewritten: Base class of modules that have been rewritten before: called as a whole.
    """

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, rewritten: type) -> None:
        super().__init__()
        self.module = module
        self.rewritten = rewritten
        self.called_as_a_whole: list[tuple[str, nn.Module]] = []
        self.context = _context()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node, if it is to run in the context in which the module is called."""
        if _context() != self.context:
            raise fx.proxy.TraceError("its code sets grad mode, autocast or saved-tensor hooks")
        if kind == "placeholder" and target.startswith("*"):
            raise fx.proxy.TraceError(f"it takes {target}")
        return super().create_node(kind, target, *args, **kwargs)

    def get_fresh_qualname(self, prefix: str) -> str:
        """Refuse to keep a constant in the graph; nothing else asks for a name."""
        raise fx.proxy.TraceError("its code uses a tensor that is no attribute")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_indivisible(m):
            return True
        if isinstance(m, nn.Sequential) and is_bare(m):
            return False
        whole = (
            not is_bare(m)
            or isinstance(m, (self.rewritten, fx.GraphModule))
            or super().is_leaf_module(m, module_qualified_name)
        )
        if whole:
            self.called_as_a_whole.append((module_qualified_name, m))
        return whole

    def trace_in_both_modes(self) -> fx.Graph:
        """Trace in training and in evaluation: code that differs cannot be rewritten once."""
        if isinstance(self.module, fx.GraphModule):
            raise fx.proxy.TraceError("its code is a graph of torch.fx, which writes it anew")
        graphs = []
        for training in (False, True):
            self.called_as_a_whole.clear()
            with (
                warnings.catch_warnings(),
                _mode(self.module, training),
                _no_effects(self.module),
                _NoOps(),  # type: ignore[no-untyped-call]
            ):
                warnings.simplefilter("ignore")  # they are for those who run the model
                self.context = _context()
                graphs.append(self.trace(self.module))
        evaluation, training_graph = (graph.python_code("self").src for graph in graphs)
        if evaluation != training_graph:
            raise ValueError("its code depends on self.training, grad mode or autocast")
        return graphs[-1]


_DEVICES = ("cpu", "cuda")


def _context() -> tuple[Any, ...]:
    """Return what a context manager may set for the operations in it."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
        *map(torch.is_autocast_enabled, _DEVICES),
        *map(torch.get_autocast_dtype, _DEVICES),
    )


@contextmanager
def _mode(root: nn.Module, on: bool) -> Iterator[None]:
    """Switch training, grad mode and autocast, all of which code may ask for or set."""
    training = {module: module.training for module in root.modules()}
    autocast = [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in _DEVICES
    ]
    try:
        for module in training:
            module.training = on
        for device in _DEVICES:
            torch.set_autocast_enabled(device, on)
        with torch.set_grad_enabled(on):
            yield
    finally:
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        for module, flag in training.items():
            module.training = flag


@contextmanager
def _no_effects(root: nn.Module) -> Iterator[None]:
    """Undo and refuse what code does to modules and random generators: it would be done once."""
    seen: set[int] = set()
    held = [(type(m).__name__, *each) for m in root.modules() for each in _containers(m, seen)]
    before = [_kept(each, apart) for _, each, apart in held]
    generators = [(get, put, get()) for get, put in _generators()]
    try:
        yield
    finally:
        changed = []
        for (kind, now, apart), then in zip(held, before, strict=True):
            if _identities(_kept(now, apart)) != _identities(then):
                changed.append(kind)
                now.clear()
                (now.extend if isinstance(now, (list, deque)) else now.update)(then)
        drawn = any(_differ(get(), state) for get, _, state in generators)
        for _, put, state in generators:
            put(state)
    if changed:
        raise ValueError(f"its code changes attributes of {changed[0]}")
    if drawn:
        raise ValueError("its code draws random numbers of its own")


_NO_STATE = (type, FunctionType, MethodType, ModuleType, nn.Module, torch.Tensor)
_LIBRARIES = sys.stdlib_module_names - {"types"} | {"torch"}  # types has SimpleNamespace


def _containers(module: nn.Module, seen: set[int]) -> Iterator[tuple[Any, frozenset[str]]]:
    """Yield what holds the attributes of ``module``, and of the objects and containers in them.

    Each with the names in it that may be set, as they hold what is computed when first read.
    Objects of libraries (loggers, locks, PyTorch's) are not looked into, nor other modules, which
    have their turn.
    """
    yield vars(module), frozenset()
    found = list(vars(module).values())
    while found:
        value = found.pop()
        held, apart = value, frozenset[str]()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if not isinstance(value, (dict, list, set, deque, tuple)):
            kind = type(value)
            if isinstance(value, _NO_STATE) or kind.__module__.partition(".")[0] in _LIBRARIES:
                continue
            held = getattr(value, "__dict__", None)
            if type(held) is not dict:
                continue
            attributes = {k: v for base in kind.__mro__ for k, v in vars(base).items()}
            apart = frozenset(
                k for k, v in attributes.items() if isinstance(v, functools.cached_property)
            )
        if not isinstance(held, tuple):
            yield held, apart
        found += held.values() if isinstance(held, dict) else held


def _kept(container: Any, apart: frozenset[str]) -> Any:
    """Return a copy of ``container`` without what has a name in ``apart``."""
    if not apart:
        return container.copy()
    return {name: value for name, value in container.items() if name not in apart}


def _identities(container: Any) -> list[int]:
    values = container.values() if isinstance(container, dict) else ()
    identities = map(id, (*container, *values))
    return sorted(identities) if isinstance(container, set) else list(identities)


def _generators() -> Iterator[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """Yield what reads and what sets the state of each random generator in use."""
    yield torch.get_rng_state, torch.set_rng_state
    yield random.getstate, random.setstate
    if numpy_random := sys.modules.get("numpy.random"):
        yield numpy_random.get_state, numpy_random.set_state


def _differ(state: Any, other: Any) -> bool:
    """Whether two states, tuples or tensors, of one random generator differ."""
    if isinstance(state, tuple):
        return any(map(_differ, state, other))
    return bool((state != other).any()) if hasattr(state, "any") else bool(state != other)


def is_indivisible(module: nn.Module) -> bool:
    """Whether ``module`` is never looked into: it has no parts, or is hand-written."""
    return next(module.children(), None) is None or type(module).__module__.startswith(
        manual_nn.__name__
    )


def is_bare(module: nn.Module) -> bool:
    """Whether calling ``module`` is no more than calling the forward of its class."""
    return not (has_code_of_its_own(module) or parametrize.is_parametrized(module))


def has_code_of_its_own(module: nn.Module) -> bool:
    """Whether ``module`` has hooks, or a forward that its class has not."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
