"""Let fused ops run neighbouring layers of a model: what ``convert(fuse=True)`` does.

The code of the model is traced by torch.fx, as large a piece at once as can be traced, and runs of
layers for which there is a fused op become one call of it. As everywhere in ``convert``, only the
class of a module changes: the piece gets a subclass of its own class whose ``forward`` is the
rewritten code. The layers stay where they are, with their parameters, buffers and names.

What is looked for, in this order:

* A rectifier before a max-pool changes places with it: max(relu(x)) = relu(max(x)), gradients
  included. Then it has fewer elements, and its output is what the next layer saves anyway.
* Batch norm, with or without a sum, rectifier, convolution: one op that saves the input of the
  norm and no activation. Where nothing else saves the sum's other operand, since it is itself
  computed again or the output of a norm, there is no gain, and it is left alone.
* A linear layer or convolution, then a rectifier: one op.
* A linear layer, then cross-entropy: one op that never holds the logits.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, fx, nn

from . import nn as manual_nn
from ._tracing import IN_PLACE, Tracer, has_code_of_its_own, is_bare, is_indivisible
from .nn import fused

_RELU = {torch.relu, torch.relu_, torch_functional.relu, torch_functional.relu_, "relu", "relu_"}
_ADD = {operator.add, IN_PLACE["iadd"], torch.add, "add", "add_"}
_WRITES = "may write in place"


class Run(NamedTuple):
    """Layers that one op runs.

    Attributes:
        layers: Their names in the model, in order; functions by their own names.
        op: What runs them.
    """

    layers: tuple[str, ...]
    op: str


class Piece(NamedTuple):
    """A module whose code was looked at.

    Attributes:
        name: In the model; empty for the model itself.
        kind: Its class.
        runs: What was fused in it.
        obstacle: Why its code could not be traced, so that only its parts were; else empty.
    """

    name: str
    kind: str
    runs: tuple[Run, ...]
    obstacle: str = ""


class Fused:
    """Base of the classes that are made here; a copy or an unpickled module is traced anew."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a module of the original class: the code here is for the layers it was made from.

        ``nn.Sequential`` does this where it is sliced.
        """
        return _behind(cls)(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = super().__reduce_ex__(protocol)[2]
        return _unfinished, (_original_class(self),), state

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self.__class__ = _original_class(self)
        fuse_layers(self)


def fuse_layers(model: nn.Module, dry_run: bool = False) -> list[Piece]:
    """Rewrite ``model`` in place; return what was looked at.

    Args:
        model: With hand-written layers; others are left alone.
        dry_run: Change nothing.
    """
    return list(_pieces(model, "", dry_run, set()))


def separate_layers(model: nn.Module) -> None:
    """Undo :func:`fuse_layers`."""
    for module in model.modules():
        if isinstance(module, Fused):
            module.__class__ = _original_class(module)


def _pieces(module: nn.Module, name: str, dry_run: bool, seen: set[nn.Module]) -> Iterator[Piece]:
    """Trace ``module``, or its parts where it cannot be; then what it calls as a whole."""
    if module in seen or isinstance(module, Fused) or is_indivisible(module):
        return
    seen.add(module)
    kind = type(module).__name__
    tracer = Tracer(module, Fused)
    try:
        graph = tracer.trace_in_both_modes()
        _refuse_what_goes_unseen(graph, module)
    except Exception as error:  # whatever the code of a model raises when it is handed a proxy
        lines = str(error).strip().splitlines() or [type(error).__name__]
        yield Piece(name, kind, (), lines[0])
        parts = list(module.named_children())
    else:
        runs = tuple(_rewrite(graph, module))
        yield Piece(name, kind, runs)
        parts = tracer.called_as_a_whole
        if runs and not dry_run:
            _set_forward(module, graph, _looks(module, runs, {part for _, part in parts}))
    for part_name, part in parts:
        yield from _pieces(part, f"{name}.{part_name}" if name else part_name, dry_run, seen)


def _refuse_what_goes_unseen(graph: fx.Graph, root: nn.Module) -> None:
    """Refuse a result that nothing in the graph reads: the code may keep it elsewhere.

    But for what is only a property of a tensor, and for assertions, which have no result.
    """
    harmless = (getattr, operator.getitem, torch._assert, "size", "dim", "numel", "stride")
    for node in graph.nodes:
        unread = node.op.startswith("call_") and not node.users
        if unread and node.target not in harmless and not _may_write(node, root):
            raise ValueError(f"its code computes {node.name} for something besides its output")


def _original_class(module: Any) -> type:
    return _behind(type(module))


def _behind(made: type) -> type:
    """Return the class that ``made``, one of those made here, stands for: it follows Fused."""
    kind: type = made.__mro__[2]
    return kind


def _unfinished(kind: Any) -> Any:
    """Return a module of class ``kind`` whose ``__setstate__`` fuses it again."""
    module = kind.__new__(kind)
    module.__class__ = type(kind.__name__, (Fused, kind), {})
    return module


# One class for all modules of the same code, so that a copy is of the class it was copied from.
_made: WeakValueDictionary[Any, type] = WeakValueDictionary()


class _Look(NamedTuple):
    """What a part of a piece looked like when its code was traced.

    Attributes:
        path: The names that lead to it.
        kind: Its class; None for the piece itself, which gets another.
        children: The names of its own parts.
    """

    path: tuple[str, ...]
    kind: type | None
    children: tuple[str, ...]


def _looks(
    piece: nn.Module, runs: Iterable[Run], whole: Collection[nn.Module]
) -> tuple[_Look, ...]:
    """Look at what was traced through, and at the layers of the runs; others are called anyway."""
    fused = {name for run in runs for name in run.layers}
    looks = []

    def look(module: nn.Module, path: tuple[str, ...]) -> None:
        if module in whole or (is_indivisible(module) and ".".join(path) not in fused):
            return
        looks.append(_Look(path, type(module) if path else None, tuple(module._modules)))
        for name, child in module._modules.items():
            if child is not None:
                look(child, (*path, name))

    look(piece, ())
    return tuple(looks)


def _look_different(piece: nn.Module, looks: tuple[_Look, ...]) -> bool:
    """Whether a part was put in another's place, appended, or got hooks since it was looked at."""
    for path, kind, children in looks:
        module: nn.Module | None = piece
        for name in path:
            module = module._modules.get(name) if module else None
        if module is None or tuple(module._modules) != children:
            return True
        if kind is not None and (type(module) is not kind or has_code_of_its_own(module)):
            return True
    return False


def _set_forward(module: nn.Module, graph: fx.Graph, looks: tuple[_Look, ...]) -> None:
    kind: Any = type(module)
    graph.on_generate_code(lambda _: lambda body: [_guard(kind, graph), *body])
    code = graph.python_code("self")
    known = frozenset((name, id(value)) for name, value in code.globals.items())
    key = (kind, code.src, known, looks)
    if key not in _made:
        own = {"_original_forward": kind.forward, "_look_different": _look_different}
        names = {**code.globals, **own, "_looks": looks}
        exec(code.src, names)
        members = {
            "forward": names["forward"],
            "__module__": kind.__module__,
            "__doc__": kind.__doc__,
        }
        made = type(f"Fused{kind.__name__}", (Fused, kind), members)
        _made[key] = made
    module.__class__ = _made[key]


def _guard(kind: Any, graph: fx.Graph) -> str:
    """Return the line that runs the original code where what was traced says nothing about it.

    Where an argument is None, which a proxy never was, or the layers are not those they were.
    """
    given = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    parameters = inspect.signature(kind.forward).parameters
    passed = [
        f"{name}={name}" if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY else name
        for name in given
    ]
    missing = " or ".join(f"{name} is None" for name in given) or "False"
    otherwise = f"_original_forward({', '.join(('self', *passed))})"
    return f"if {missing} or _look_different(self, _looks): return {otherwise}\n"


@dataclass(frozen=True)
class _Call:
    """A node of the graph that calls a layer, or a function that is as good as one."""

    node: fx.Node
    module: nn.Module | None

    @property
    def name(self) -> str:
        target = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    @property
    def input(self) -> fx.Node:
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def is_relu(self) -> bool:
        if self.module is not None:
            return type(self.module) is manual_nn.ReLU
        return self.node.target in _RELU

    def is_a(self, *kinds: type) -> bool:
        return type(self.module) in kinds

    @property
    def has_one_user(self) -> bool:
        return len(self.node.users) == 1


def _rewrite(graph: fx.Graph, root: nn.Module) -> Iterator[Run]:
    """Apply the patterns to ``graph``; yield what was fused."""
    calls = functools.partial(_call, root=root)
    for node in graph.nodes:
        node.meta[_WRITES] = _may_write(node, root)
    for pattern in (_pool_first, _norm_relu_conv, _then_relu, _linear_cross_entropy):
        for node in list(graph.nodes):
            if (call := calls(node)) and (run := pattern(graph, call, calls)):
                yield run
    graph.lint()


def _call(node: Any, root: nn.Module) -> _Call | None:
    """Return ``node`` as a call, if it is one of something that a fused op may replace."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return _Call(node, module) if is_bare(module) else None
    return _Call(node, None) if node.op in ("call_function", "call_method") else None


Calls = Callable[[Any], _Call | None]


def _pool_first(graph: fx.Graph, pool: _Call, calls: Calls) -> Run | None:
    """Rectifier, then max-pool without indices; nothing else reads what either of them reads."""
    relu = calls(pool.input)
    if not pool.is_a(manual_nn.MaxPool2d) or pool.module.return_indices:  # type: ignore[union-attr]
        return None
    if not relu or not relu.is_relu or not relu.has_one_user or not _sole_use(relu):
        return None
    if not _undisturbed(relu.node, pool.node):
        return None
    pool.node.replace_all_uses_with(relu.node)
    pool.node.args = (relu.input,)
    relu.node.args = (pool.node, *relu.node.args[1:])
    pool.node.append(relu.node)
    return Run((relu.name, pool.name), "max-pool before rectifier")


def _norm_relu_conv(graph: fx.Graph, relu: _Call, calls: Calls) -> Run | None:
    """Norm, maybe a sum, rectifier, one convolution; later sums get the activation as output 2."""
    if not relu.is_relu or not _sole_use(relu):
        return None
    norm, residual = calls(relu.input), None
    if norm and norm.module is None and norm.node.target in _ADD:
        norm, residual = _summands(norm, calls)
    users = [_Call(user, None) if calls(user) is None else calls(user) for user in relu.node.users]
    convolutions = [user for user in users if user and user.is_a(manual_nn.Conv2d)]
    sums = [user for user in users if user and user.node.target in _ADD]
    if not norm or not norm.is_a(manual_nn.BatchNorm2d) or not norm.has_one_user:
        return None
    # Anything else that reads the activation may save it.
    if len(convolutions) != 1 or len(convolutions) + len(sums) != len(users):
        return None
    (conv,) = convolutions
    if conv.module.padding_mode != "zeros":  # type: ignore[union-attr]
        return None
    saved = residual is None or _is_saved(residual, calls)
    if not saved or not _undisturbed(norm.node, relu.input, relu.node, conv.node):
        return None
    with graph.inserting_before(relu.node):
        layers = (graph.get_attr(norm.name), graph.get_attr(conv.name))
        arguments = (*layers, norm.input, residual, bool(sums))
        both = graph.call_function(fused.norm_relu_conv, arguments)
        if sums:
            output, activation = (
                graph.call_function(operator.getitem, (both, i)) for i in range(2)
            )
            relu.node.replace_all_uses_with(activation, lambda user: user is not conv.node)
        else:
            output = both
    conv.node.replace_all_uses_with(output)
    names = [norm.name, relu.name, conv.name]
    if residual is not None:
        names.insert(1, "add")
    for node in dict.fromkeys((conv.node, relu.node, relu.input, norm.node)):
        graph.erase_node(node)
    return Run(tuple(names), "batch_norm_relu_conv2d")


def _summands(add: _Call, calls: Calls) -> tuple[_Call | None, Any]:
    """Return the batch norm of a sum that only the rectifier uses, and what it is added to."""
    if len(add.node.args) != 2 or add.node.kwargs or not add.has_one_user:
        return None, None
    for norm, other in (add.node.args, reversed(add.node.args)):
        call = calls(norm)
        if call and call.is_a(manual_nn.BatchNorm2d) and call.has_one_user:
            # A sum in the memory of its other operand is seen by whoever reads that.
            lost = norm is not add.input and add.node.meta[_WRITES]
            return (call, other) if isinstance(other, fx.Node) and not lost else (None, None)
    return None, None


def _is_saved(activation: Any, calls: Calls) -> bool:
    """Whether some op saves ``activation`` anyway: not what is recomputed, nor a norm's output."""
    node = activation.args[0] if activation.target is operator.getitem else activation
    call = calls(activation)
    return node.target is not fused.norm_relu_conv and not (
        call and call.is_a(manual_nn.BatchNorm2d)
    )


def _then_relu(graph: fx.Graph, relu: _Call, calls: Calls) -> Run | None:
    """Linear layer, or convolution padded with zeros, then a rectifier as its only reader."""
    layer = calls(relu.input)
    if not relu.is_relu or not layer or not layer.has_one_user:
        return None
    if layer.is_a(manual_nn.Linear):
        op: Callable[..., Tensor] = fused.linear_relu
    elif layer.is_a(manual_nn.Conv2d) and layer.module.padding_mode == "zeros":  # type: ignore[union-attr]
        op = fused.conv_relu
    else:
        return None
    if not _undisturbed(layer.node, relu.node):
        return None
    with graph.inserting_before(relu.node):
        output = graph.call_function(op, (graph.get_attr(layer.name), layer.input))
    relu.node.replace_all_uses_with(output)
    graph.erase_node(relu.node)
    graph.erase_node(layer.node)
    return Run((layer.name, relu.name), op.__name__)


def _linear_cross_entropy(graph: fx.Graph, loss: _Call, calls: Calls) -> Run | None:
    """Linear layer, then cross-entropy, called as ``loss(logits, target)``, as its only reader."""
    linear = calls(loss.input)
    if not loss.is_a(manual_nn.CrossEntropyLoss) or not linear or not linear.has_one_user:
        return None
    if not linear.is_a(manual_nn.Linear) or len(loss.node.args) != 2:
        return None
    if loss.node.args[1] is linear.node:  # the logits as their own target
        return None
    if not _undisturbed(linear.node, loss.node):
        return None
    with graph.inserting_before(loss.node):
        layers = (graph.get_attr(linear.name), graph.get_attr(loss.name))
        arguments = (*layers, linear.input, loss.node.args[1])
        output = graph.call_function(fused.linear_cross_entropy, arguments)
    loss.node.replace_all_uses_with(output)
    graph.erase_node(loss.node)
    graph.erase_node(linear.node)
    return Run((linear.name, loss.name), "linear_cross_entropy")


def _undisturbed(*pattern: fx.Node) -> bool:
    """Whether nothing is written in place between the first and the last node of ``pattern``.

    The op that replaces them reads what they read at another time.
    """
    node = pattern[0]
    while (node := node.next) is not pattern[-1]:
        if node not in pattern and node.meta.get(_WRITES):
            return False
    return True


def _may_write(node: fx.Node, root: nn.Module) -> bool:
    """Whether ``node`` may write in place: code that is not torch's may do anything."""
    if any(argument is True for argument in (*node.args, node.kwargs.get("inplace"))):
        return True  # F.relu(x, True)
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        known = is_indivisible(module) and is_bare(module) and _is_known(type(module))
        return getattr(module, "inplace", False) or not known
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place = node.target in IN_PLACE.values() or name.endswith("_")
        return in_place or "out" in node.kwargs or not _is_known(node.target)
    return node.op == "call_method" and str(node.target).endswith("_")


def _is_known(code: Any) -> bool:
    """Whether ``code`` is of torch, this package or Python."""
    home = (getattr(code, "__module__", None) or "torch").partition(".")[0]
    return home in ("torch", __package__, "_operator", "builtins", "math")


def _sole_use(call: _Call) -> bool:
    """Whether what ``call`` reads is read by nothing else: it might be overwritten there."""
    return len(call.input.users) == 1
