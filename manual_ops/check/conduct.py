"""Checks of conduct: what autograd, and whoever calls an op, expects of its backward."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from manual_ops.check.causes import IMPURE, SPARSE
from manual_ops.check.differences import check_gradients
from manual_ops.check.exam import Check, Exam, draw_like
from manual_ops.check.graph import (
    BackwardCall,
    Snapshot,
    argument_names,
    function_name,
    function_nodes,
    pull_back,
    recorded,
)
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.subject import Subject

_DROPPED = (
    "A gradient that is due is left out: None for one output says nothing of what comes in for the "
    "others."
)

Tensors = tuple[Tensor, ...]
Compared = list[tuple[str, Tensor, Tensor]]


def by_input(op: Subject, found: Iterable[Tensor], expected: Iterable[Tensor]) -> Compared:
    """Name what is compared: the gradient of each input."""
    names = (f"gradient of {name}" for name in op.tensor_names)
    return list(zip(names, found, expected, strict=True))


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The ways to ask for some of the gradients, few first, all last.

    Of more than four inputs not every one: each alone, all but each.
    """
    some = range(1, len(names)) if len(names) <= 4 else (1, len(names) - 1)
    for count in (*some, len(names)):
        yield from combinations(names, count)


def needs_input_grad(check: Check, exam: Exam) -> Iterator[Row]:
    """Gradients not asked for are not computed; the others are the same without them."""
    op = exam.given
    leaves = op.leaf_tensors()
    full = dict(zip(op.tensor_names, pull_back(op(*leaves), leaves), strict=True))
    compared: Compared = []
    wasted: list[tuple[tuple[str, ...], BackwardCall]] = []
    for asked in subsets(op.tensor_names):
        leaves = op.leaf_tensors(asked)
        outputs = op(*leaves)
        if not any(output.requires_grad for output in outputs):
            continue
        with recorded(function_nodes(outputs)) as calls:
            found = pull_back(outputs, leaves)
        wasted += [(asked, call) for call in calls if call.wasted]
        names = (f"gradient of {name}, others not asked for" for name in asked)
        compared += zip(names, found, (full[name] for name in asked), strict=True)
    row = check.all_equal(
        compared,
        cause="The gradient depends on which others are asked for: a wrong index into "
        "ctx.needs_input_grad, or a value that another gradient's branch computes.",
    )
    if wasted and not row.failed:
        asked, call = wasted[0]
        row = check.failed(
            "" if asked == op.tensor_names else f"for {' and '.join(asked)} alone",
            f"{len(call.wasted)} of {len(call.aten)} ATen calls in backward of "
            f"{function_name(call.node)} go into no gradient asked for: "
            f"{', '.join(dict.fromkeys(call.wasted))}",
        )
    yield row


def determinism(check: Check, exam: Exam) -> Iterator[Row]:
    """Repeats give the same bits, whatever other calls come between forward and backward."""
    op = exam.given
    leaves = op.leaf_tensors()
    outputs = op(*leaves)
    gradients = pull_back(outputs, leaves)
    compared: Compared = []
    for _ in range(3):
        again = op(*leaves)
        compared += [
            (f"output {k}", *pair) for k, pair in enumerate(zip(again, outputs, strict=True))
        ]
        compared += by_input(op, pull_back(again, leaves), gradients)
    row = check.all_equal(compared, ulps=0)
    if row.failed and row.subject.startswith("output"):
        row = replace(row, cause=IMPURE)
    if not row.failed:
        again = op(*leaves)
        torch.rand(())  # forward is seeded anew in every call; a backward that draws is not
        row = check.all_equal(by_input(op, pull_back(again, leaves), gradients), ulps=0)
    if not row.failed:
        again = op(*leaves)
        with suppress(Exception):  # an op need not take smaller inputs; then nothing comes between
            op(*(leaf.detach().mul(0.5).requires_grad_() for leaf in leaves))
        row = check.all_equal(
            by_input(op, pull_back(again, leaves), gradients),
            ulps=0,
            cause="Another call between forward and backward changes the gradient: state is kept "
            "on the class, the module or in a global. Keep it on ctx.",
        )
    yield row


def inputs_unchanged(check: Check, exam: Exam) -> Iterator[Row]:
    """Forward and backward write to no input, output or grad_output."""
    op = exam.given
    leaves = op.leaf_tensors()
    constants = {
        op.names[i]: leaf
        for i, leaf in enumerate(op.leaves)
        if i not in op.differentiable and i not in op.mutable
    }
    inputs = Snapshot(constants | dict(zip(op.tensor_names, leaves, strict=True)))
    outputs = op(*leaves)
    changed = inputs.changed()
    if changed:
        yield check.failed("forward", f"changes {', '.join(changed)} in place")
        return
    cotangents = draw_like(outputs, 1)
    given = Snapshot({f"grad_output {k}": c for k, c in enumerate(cotangents)})
    returned = Snapshot({f"output {k}": output for k, output in enumerate(outputs)})
    with recorded(function_nodes(outputs)) as calls:
        pull_back(outputs, leaves, cotangents)
    changed = [f"grad_output of {function_name(c.node)}" for c in calls if c.modified]
    changed += [*inputs.changed(), *returned.changed(), *([] if changed else given.changed())]
    if changed:
        yield check.failed("backward", f"changes {', '.join(dict.fromkeys(changed))} in place")
    else:
        yield check.passed()


def same_tensor_twice(check: Check, exam: Exam) -> Iterator[Row]:
    """One tensor passed as two inputs gets the sum of their gradients."""
    op = exam.given
    like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in op.tensors]
    pairs = [(i, j) for i, j in combinations(range(len(like)), 2) if like[i] == like[j]]
    if not pairs:
        raise NotApplicableError("no two inputs have the same shape and dtype")
    compared: Compared = []
    for i, j in pairs:
        leaves = list(op.leaf_tensors())
        leaves[j] = leaves[i].detach().clone().requires_grad_()
        try:
            outputs = op(*leaves)
        except Exception:  # the one does not take the other's values
            continue
        one, other = pull_back(outputs, (leaves[i], leaves[j]))
        leaves[j] = leaves[i]
        (found,) = pull_back(op(*leaves), (leaves[i],))
        compared.append((f"{op.tensor_names[i]} is {op.tensor_names[j]}", found, one + other))
    if not compared:
        raise NotApplicableError("no input takes another's values")
    yield check.all_equal(compared)


def gradients_returned(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward returns what fits each input, before autograd sums and casts it."""
    op = exam.given
    leaves = op.leaf_tensors()
    outputs = op(*leaves)
    nodes = function_nodes(outputs)
    if not nodes:
        raise NotApplicableError("there is no autograd.Function in the graph")
    layouts = {tensor.layout for tensor in op.tensors}
    with recorded(nodes) as calls:
        found = torch.autograd.grad(outputs, leaves, draw_like(outputs, 1), allow_unused=True)
    rows = [
        check.failed(f"{name} of {function_name(call.node)}", misfit, cause=cause)
        for call in calls
        for name, misfit, cause in _misfits(call, layouts)
    ]
    rows += [
        check.failed(
            name,
            "None, although the output depends on it",
            cause="Return a gradient wherever ctx.needs_input_grad is set, in the order of "
            "forward's arguments; an op that detaches its input cuts the graph as well.",
        )
        for name in _due(exam.precise, [i for i, g in enumerate(found) if g is None])
    ]
    yield from rows or [check.passed()]


def _misfits(call: BackwardCall, layouts: set[torch.layout]) -> Iterator[tuple[str, str, str]]:
    """What does not fit: argument, complaint and cause, if it is not the usual one."""
    # autograd knows the arguments that require grad, in their order.
    inputs = [parent._input_metadata[i] for parent, i in call.node.next_functions if parent]
    needed = [i for i, needs in enumerate(call.node.needs_input_grad) if needs]
    names = argument_names(call.node)
    for i, input in zip(needed, inputs, strict=True):
        gradient = call.returned[i] if i < len(call.returned) else None
        if gradient is None:
            continue
        if tuple(gradient.shape) != tuple(input.shape):
            yield names[i], f"shape {list(gradient.shape)} for an input of {list(input.shape)}", ""
        if gradient.dtype != input.dtype:
            yield names[i], f"dtype {gradient.dtype} for an input of {input.dtype}", ""
        if gradient.device != input.device:
            yield names[i], f"device {gradient.device} for an input on {input.device}", ""
        if gradient.layout not in layouts:
            yield names[i], f"layout {gradient.layout} for a dense input", SPARSE


def _due(op: Subject, missing: list[int]) -> list[str]:
    """Names of those ``missing`` inputs whose gradient is not zero."""
    leaves = op.tensors

    def outputs_at(*some: Tensor) -> Tensors:
        moved = dict(zip(missing, some, strict=True))
        return op(*(moved.get(i, leaf) for i, leaf in enumerate(leaves)))

    with torch.no_grad():
        cotangents = draw_like(op(*leaves), 1)
    some = [leaves[i] for i in missing]
    findings = check_gradients(outputs_at, some, cotangents, [torch.zeros_like(t) for t in some])
    names = (op.tensor_names[i] for i in missing)
    return [name for name, finding in zip(names, findings, strict=True) if not finding.ok]


def undefined_gradients(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward takes outputs that get no gradient, alone and together, for zeros."""
    op = exam.given
    leaves = op.leaf_tensors()
    without_gradient: Callable[..., Any] = torch._C._functions.UndefinedGrad()
    found = pull_back(tuple(map(without_gradient, op(*leaves))), leaves)
    compared = by_input(op, found, map(torch.zeros_like, found))
    cotangents = draw_like(op(*leaves), 1)
    for k in range(len(cotangents) if len(cotangents) > 1 else 0):
        outputs = list(op(*leaves))
        outputs[k] = without_gradient(outputs[k])
        found = pull_back(outputs, leaves, cotangents)
        zeroed = [c if i != k else torch.zeros_like(c) for i, c in enumerate(cotangents)]
        compared += by_input(op, found, pull_back(op(*leaves), leaves, zeroed))
    row = check.all_equal(compared)
    dropped = [name for name, found, expected in compared if expected.any() and not found.any()]
    yield replace(row, cause=_DROPPED) if row.failed and row.subject in dropped else row


def no_grad_mode(check: Check, exam: Exam) -> Iterator[Row]:
    """Under no_grad and inference_mode values are the same, and no graph is built."""
    op = exam.given
    leaves = op.leaf_tensors()
    expected = op(*leaves)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = op(*leaves)
        if any(output.grad_fn is not None for output in outputs):
            yield check.failed(mode.__name__, "an output has a grad_fn")
            return
        names = (f"output {k} under {mode.__name__}" for k in range(len(outputs)))
        row = check.all_equal(zip(names, outputs, expected, strict=True))
        if row.failed:
            yield row
            return
    yield check.passed()


def setup_context(check: Check, exam: Exam) -> Iterator[Row]:
    """Functions work under torch.func, which needs forward without ctx and a setup_context."""
    op = exam.given
    nodes = function_nodes(op(*op.leaf_tensors()))
    if not nodes:
        raise NotApplicableError("there is no autograd.Function in the graph")
    try:
        torch.func.vjp(op, *op.tensors)
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        names = ", ".join(dict.fromkeys(map(function_name, nodes)))
        raise NotApplicableError(
            f"forward of {names} takes ctx, which torch.func refuses: move what fills it to "
            "setup_context(ctx, inputs, output)"
        ) from error
    yield check.passed()
