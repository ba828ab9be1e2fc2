"""A picture of backpropagation: one forward and one backward pass of a model, step by step.

    trace(model, images, labels)                    # prints as a table
    trace(model, images, labels).save("trace.html")  # a page of its own, to put on a screen
    writer.add_text("trace", trace(model, images, labels).markdown())  # TensorBoard

Forward, every hand-written op is seen as its ``Function`` is applied; backward, by a hook on its
node in the autograd graph. What PyTorch itself differentiates (a view, an addition) has a node, but
its forward cannot be watched: of those the table shows shapes and gradients alone.
"""

import html
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_leaves

from ._compare import call
from .convert import convert, override
from .functional import cross_entropy

_COLUMNS = ("layer", "op", "tensor", "shape", "norm", "norm of gradient", "saved bytes")


@dataclass(frozen=True)
class Value:
    """A tensor at one end of a step.

    Attributes:
        name: Its name among the arguments of the op.
        shape: Its shape.
        norm: Its Euclidean norm; None where it was not seen.
        gradient: The norm of the loss's gradient with respect to it; None if it has none.
    """

    name: str
    shape: tuple[int, ...]
    norm: float | None
    gradient: float | None = None


@dataclass(frozen=True)
class Step:
    """One op of the forward pass, and what backward did with it.

    Attributes:
        op: Its name.
        layer: The module it ran in, by its name in the model; empty outside of all.
        manual: Whether its gradient is hand-written.
        inputs: What it read.
        outputs: What it returned.
        saved_bytes: Of the distinct tensors it saved for backward.
        formulas: Its formulas by name ("Forward", "Backward", "Tangent"), from its derivation.
        order: Position in the backward pass, from 1; None if backward did not reach it.
    """

    op: str
    layer: str
    manual: bool
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    saved_bytes: int
    formulas: dict[str, str] = field(default_factory=dict)
    order: int | None = None


@dataclass(frozen=True)
class Trace:
    """The steps of one forward and backward pass, in the order of the forward pass.

    Attributes:
        model: Name of the model's class.
        loss: The loss.
        steps: The steps.
    """

    model: str
    loss: float
    steps: tuple[Step, ...]

    @property
    def saved_bytes(self) -> int:
        """Saved for backward in all steps; a tensor that two steps save counts twice."""
        return sum(step.saved_bytes for step in self.steps)

    def __str__(self) -> str:
        table = [("", *_COLUMNS), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([f"{self.model}: loss {self.loss:.6g}", "", *lines])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for number, step in enumerate(self.steps, 1):
            op = step.op if step.manual else f"{step.op} (PyTorch's)"
            first = (str(number), step.layer, op)
            saved = f"{step.saved_bytes:,}"
            for value in (*step.inputs, *step.outputs):
                shape = "x".join(map(str, value.shape)) or "scalar"
                yield (*first, value.name, shape, _norm(value.norm), _norm(value.gradient), saved)
                first, saved = ("", "", ""), ""

    def markdown(self) -> str:
        """The table in Markdown, with the formulas below: for ``SummaryWriter.add_text``."""
        names = ("step", *_COLUMNS)
        lines = [_markdown(names), _markdown(["---"] * len(names)), *map(_markdown, self._rows())]
        formulas = {step.op: step.formulas for step in self.steps if step.formulas}
        for op, parts in formulas.items():
            lines += ["", f"**{op}**", "", "```"]
            lines += [f"{name + ':':<10} {_indented(text, 11)}" for name, text in parts.items()]
            lines.append("```")
        return "\n".join([f"{self.model}: loss {self.loss:.6g}", "", *lines])

    def to_html(self) -> str:
        """A page that needs nothing else: values run down its left side, gradients up its right."""
        largest = max((v.gradient or 0.0 for s in self.steps for v in s.inputs), default=0.0) or 1.0
        cards = "".join(_card(n, step, largest) for n, step in enumerate(self.steps, 1))
        return _PAGE.substitute(
            model=html.escape(self.model),
            loss=f"{self.loss:.6g}",
            steps=len(self.steps),
            manual=sum(step.manual for step in self.steps),
            saved=f"{self.saved_bytes:,}",
            cards=cards,
        )

    def save(self, path: str | Path) -> None:
        """Write the page.

        Raises:
            OSError: The file cannot be written.
        """
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.to_html())}" width="100%" height="600"></iframe>'


def trace(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor] = cross_entropy,
) -> Trace:
    """Run a model forward and backward once and record every step.

    A copy of the model runs, converted to hand-written layers, so that every step that has a
    derivation here shows it. The model itself, its gradients and the random state do not change.

    Args:
        model: Any module, in training or evaluation mode as it is.
        inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        targets: Given to ``loss`` after the model's output.
        loss: Returns a scalar.

    Returns:
        The record; it prints as a table.

    Raises:
        ValueError: ``loss`` does not return a scalar that depends on a parameter or input.
        Exception: What the model or the loss raises.
    """
    copied, _ = convert(model)
    copied.zero_grad()
    recorder = _Recorder()
    devices = {t.device for t in tree_leaves((inputs, list(copied.parameters()))) if _on_cuda(t)}
    with (
        torch.random.fork_rng(list(devices)),
        torch.enable_grad(),
        override(),
        recorder.watching(copied),
    ):
        value = loss(call(copied, inputs), targets)
    if value.numel() != 1 or value.grad_fn is None:
        raise ValueError(
            "expected loss to return a scalar that depends on a parameter, "
            f"got shape {list(value.shape)}{'' if value.grad_fn else ' without a gradient'}"
        )
    recorder.watch_backward(value)
    value.backward()
    return Trace(type(model).__name__, float(value.detach()), recorder.steps())


class _Recorder:
    """Collects what is seen of each node of the graph."""

    def __init__(self) -> None:
        self._layers: list[str] = []
        self._seen: dict[Any, _Applied] = {}
        self._nodes: dict[Any, int] = {}  # the bytes that each saves, which backward frees
        self._gradients: dict[Any, tuple[list[float | None], list[float | None]]] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within the block, note every Function that is applied, and in which module."""
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        original = Function.__dict__["apply"]
        recorder = self

        def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
            result = original.__get__(None, cls)(*args, **kwargs)
            recorder._note(cls, args, result)
            return result

        Function.apply = classmethod(apply)
        try:
            yield
        finally:
            Function.apply = original
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> None:
        self._layers.append(name)

    def _leave(self) -> None:
        self._layers.pop()

    def _note(self, cls: type[Function], args: tuple[Any, ...], result: Any) -> None:
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        nodes = {t.grad_fn for t in outputs if t.grad_fn is not None}
        for node in nodes:
            layer = self._layers[-1] if self._layers else ""
            self._seen[node] = _Applied(
                cls, layer, _measured(args), _measured(outputs), _saved_bytes(node)
            )

    def watch_backward(self, loss: Tensor) -> None:
        """Hook every node that backward from ``loss`` will pass."""
        waiting, known = [loss.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in known:
                continue
            known.add(node)
            waiting += [following for following, _ in node.next_functions]
            if "AccumulateGrad" not in node.name():
                self._nodes[node] = _saved_bytes(node)
                node.register_hook(lambda into, out, node=node: self._reached(node, into, out))

    def _reached(self, node: Any, grad_inputs: Any, grad_outputs: Any) -> None:
        self._gradients[node] = ([*map(_size, grad_inputs)], [*map(_size, grad_outputs)])

    def steps(self) -> tuple[Step, ...]:
        """The steps in forward order."""
        order = {node: number for number, node in enumerate(self._gradients, 1)}
        nodes = sorted(self._nodes, key=lambda node: node._sequence_nr())
        return tuple(self._step(node, order.get(node)) for node in nodes)

    def _step(self, node: Any, order: int | None) -> Step:
        into, out = self._gradients.get(node, ([], []))
        applied = self._seen.get(node)
        if applied is None:
            metadata = node._input_metadata
            outputs = tuple(
                Value(_output_name(i, len(metadata)), tuple(m.shape), None, _at(out, i))
                for i, m in enumerate(metadata)
            )
            name = re.sub(r"Backward\d*$", "", node.name())
            return Step(name, "", False, (), outputs, self._nodes[node], {}, order)
        names = applied.argument_names
        inputs = tuple(
            Value(names[i] if i < len(names) else f"input {i}", shape, norm, _at(into, i))
            for i, (shape, norm) in applied.inputs.items()
        )
        outputs = tuple(
            Value(_output_name(i, len(applied.outputs)), shape, norm, _at(out, i))
            for i, (shape, norm) in applied.outputs.items()
        )
        return Step(
            applied.name,
            applied.layer,
            True,
            inputs,
            outputs,
            applied.saved,
            applied.formulas,
            order,
        )


@dataclass(frozen=True)
class _Applied:
    """A Function that was applied: where, to what, with what result."""

    function: type[Function]
    layer: str
    inputs: dict[int, tuple[tuple[int, ...], float | None]]
    outputs: dict[int, tuple[tuple[int, ...], float | None]]
    saved: int

    @property
    def _derivation(self) -> str:
        return getattr(sys.modules.get(self.function.__module__), "__doc__", None) or ""

    @property
    def name(self) -> str:
        if name := getattr(self.function, "op_name", ""):
            return str(name)
        name = self.function.__name__.lstrip("_")
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()

    @property
    def argument_names(self) -> list[str]:
        return list(getattr(self.function, "argument_names", ()))

    @property
    def formulas(self) -> dict[str, str]:
        return formulas(self._derivation)


def formulas(derivation: str) -> dict[str, str]:
    """Read the formulas out of the docstring of an op.

    Args:
        derivation: With lines ``Forward:  ...``, ``Backward: ...`` and ``Tangent:  ...``, each
            continued by lines that are indented.

    Returns:
        The formulas by name, in their order, without the names.
    """
    found: dict[str, str] = {}
    pattern = r"^(Forward|Backward|Tangent):( +)(.*(?:\n[ ]+\S.*)*)"
    for name, space, text in re.findall(pattern, derivation, re.MULTILINE):
        indent = len(name) + 1 + len(space)
        found[name] = "\n".join(
            line[indent:] if not line[:indent].strip() else line for line in text.split("\n")
        )
    return found


def _measured(tensors: Any) -> dict[int, tuple[tuple[int, ...], float | None]]:
    return {i: (tuple(t.shape), _size(t)) for i, t in enumerate(tensors) if isinstance(t, Tensor)}


def _size(tensor: Tensor | None) -> float | None:
    if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    return float(torch.linalg.vector_norm(tensor.detach()))


def _saved_bytes(node: Any) -> int:
    names = [n for n in dir(node) if n.startswith("_saved_") and n != "_saved_tensors"]
    saved = [getattr(node, name) for name in names] if names else getattr(node, "saved_tensors", ())
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tree_leaves(list(saved))
        if isinstance(t, Tensor)
    }
    return sum(storages.values())


def _on_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


def _output_name(index: int, count: int) -> str:
    return "output" if count == 1 else f"output {index}"


def _at(values: list[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _norm(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _markdown(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _indented(text: str, spaces: int) -> str:
    return text.replace("\n", "\n" + " " * spaces)


def _card(number: int, step: Step, largest: float) -> str:
    """One step of the page."""
    kind = "manual" if step.manual else "native"
    name = html.escape(step.op) + ("" if step.manual else " <small>PyTorch's own</small>")
    layer = f"<span class=layer>{html.escape(step.layer)}</span>" if step.layer else ""
    rows = "".join(_row(value, largest) for value in (*step.inputs, *step.outputs))
    lines = [f"{k + ':':<10} {_indented(v, 11)}" for k, v in step.formulas.items()]
    formula = f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else ""
    order = "" if step.order is None else f"<span class=order>backward {step.order}</span>"
    return (
        f"<section class={kind}><h2><b>{number}</b> {name} {layer}"
        f"<span class=saved>saves {step.saved_bytes:,} bytes</span>{order}</h2>"
        "<div class=scroll><table><tr><th></th><th>shape</th><th>norm &darr;</th>"
        f"<th colspan=2>norm of gradient &uarr;</th></tr>{rows}</table></div>{formula}</section>"
    )


def _row(value: Value, largest: float) -> str:
    share = 0.0 if value.gradient is None else min(1.0, value.gradient / largest)
    bar = f"<i style='width:{share:.1%}'></i>" if value.gradient is not None else ""
    shape = "&times;".join(map(str, value.shape)) or "scalar"
    return (
        f"<tr><td>{html.escape(value.name)}</td><td>{shape}</td><td>{_norm(value.norm)}</td>"
        f"<td>{_norm(value.gradient)}</td><td class=bar>{bar}</td></tr>"
    )


_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Backpropagation through $model</title>
<style>
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --accent: #1668dc; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aaa; --accent: #6cb0ff; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
section { border: 1px solid var(--line); border-left: .3rem solid var(--accent);
  border-radius: .5rem; padding: .6rem 1rem; margin: 1rem 0; }
section.native { border-left-color: var(--line); }
h2 { font-size: 1.15rem; margin: 0 0 .3rem; display: flex; flex-wrap: wrap; gap: .2rem .8rem;
  align-items: baseline; }
h2 b { color: var(--accent); } .native h2 b, small, .saved, .order, p { color: var(--quiet); }
small, .saved, .order, .layer { font-size: .85rem; font-weight: normal; }
.layer { font-family: ui-monospace, monospace; } .saved { margin-left: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: normal; color: var(--quiet); font-size: .85rem; }
td, th { padding: .1rem .8rem .1rem 0; white-space: nowrap; }
.bar { width: 30%; min-width: 4rem; } .bar i { display: block; height: .6rem;
  background: var(--accent); border-radius: .3rem; min-width: 1px; }
pre { overflow-x: auto; margin: .6rem 0 0; padding-top: .6rem; border-top: 1px solid var(--line);
  font-size: .9rem; line-height: 1.4; }
</style></head><body>
<h1>Backpropagation through $model</h1>
<p>Loss $loss. $steps steps, $manual of them with a hand-written gradient; together they save
$saved bytes. Values run down the page, gradients up.</p>
$cards
</body></html>
"""
)
