"""Checks under other conditions: an empty batch, autocast, tensors without data."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from manual_ops.check.batches import resized
from manual_ops.check.exam import Check, Exam, refusal
from manual_ops.check.precision import REFERENCE, Truth, beside, inputs_by_gradient, plain
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.runs import Run, close, run, unlike, within
from manual_ops.check.subject import Subject


def empty_batch(check: Check, exam: Exam) -> Iterator[Row]:
    """A batch of no samples: no crash, the right shapes, gradients of parameters zero."""
    op, reference = exam.single, exam.reference
    first = next(leaf for leaf in op.leaves[op.arguments[0] :] if isinstance(leaf, Tensor))
    chosen: tuple[int, ...] = ()
    empty = op
    if first.numel():
        try:
            empty, chosen = resized(op, _emptied)
        except NotApplicableError as refused:
            if reference is None:
                raise
            resized(op.on(reference), _emptied)
            yield check.failed("", f"{refused}; the reference takes it")
            return
    found = run(empty)
    if reference is not None:
        theirs = run(empty.on(reference))
        difference = unlike(found.every, theirs.every, REFERENCE, like=inputs_by_gradient(empty))
        if difference:
            yield check.failed("", difference)
            return
        yield close(check, found.every, theirs.every)
        return
    outputs = run(op).values
    for name, tensor in found.values.items():
        before = outputs[name].shape
        if len(before) != tensor.dim() or any(
            size not in (0, whole) for size, whole in zip(tensor.shape, before, strict=False)
        ):
            yield check.failed("", f"{name}: shape {list(tensor.shape)}, of a batch {list(before)}")
            return
    if not any(tensor.numel() for name, tensor in found.values.items() if "output" in name):
        names = [op.names[i] for i in op.differentiable if i not in chosen]
        gradients = {f"gradient of {n}": found.gradients[f"gradient of {n}"] for n in names}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in gradients.items()}
        yield close(check, gradients, zeros)
        return
    yield check.passed()


def autocast(check: Check, exam: Exam) -> Iterator[Row]:
    """Under autocast to bfloat16, of inputs in float32 and of the first in bfloat16."""
    if any(tensor.is_complex() for tensor in exam.given.tensors):
        raise NotApplicableError("complex inputs, which autocast leaves alone")
    wide = exam.given.to(torch.float32)
    of_inputs = [i for i in wide.differentiable if i in wide.arguments]
    first = (of_inputs or wide.differentiable)[0]  # a module's parameters stay in float32
    for dtype in (torch.float32, torch.bfloat16):
        if refusal(wide.to(dtype)):
            yield Row(check.name, "n/a", plain(dtype), detail="refused without autocast as well")
            continue
        leaves = [x.to(dtype) if i == first else x for i, x in enumerate(wide.leaves)]
        op = replace(wide, leaves=tuple(leaves))
        yield check.attempt(plain(dtype), partial(_autocast, check, exam, op, plain(dtype)))


def meta_device(check: Check, exam: Exam) -> Iterator[Row]:
    """Shapes and dtypes of outputs and gradients from tensors without data."""
    op = exam.single
    expected, of = None, REFERENCE
    if exam.reference is not None:
        with suppress(Exception):  # some of torch's own kernels do not run there
            expected = run(_on_meta(op.on(exam.reference)))
    beside_reference = expected is not None
    if expected is None:
        expected, of = run(op), "of data"
    try:
        found = run(_on_meta(op))
    except Exception as error:
        reason = _not_on_meta(op, str(error))
        if reason and not beside_reference:
            raise NotApplicableError(reason) from error
        raise
    like = inputs_by_gradient(op)
    difference = unlike(found.every, expected.every, of, like=like, device=beside_reference)
    yield check.failed("", difference) if difference else check.passed()


def _emptied(tensor: Tensor) -> Tensor:
    return tensor[:0]


def _not_on_meta(op: Subject, error: str) -> str:
    """Why an op cannot do without data, if that may be; empty if it should."""
    if re.search(r"no data|item\(\)|meta tensor", error):
        return "reads the values of its inputs, which tensors on meta do not have"
    if "numpy" in error:
        return "leaves torch (numpy), where there are no tensors without data"
    if "Meta kernel" in error:
        return "calls a kernel of torch that does not run on meta"
    if op.function_class is None and re.search(r"meta.*cpu|cpu.*meta|same device", error):
        return "uses a tensor on another device than its inputs are on: made there, or captured"
    return ""


def _autocast(check: Check, exam: Exam, op: Subject, name: str) -> Row:
    device = op.tensors[0].device.type
    low = torch.bfloat16

    def low_run(subject: Subject) -> Run:
        return run(subject, call=torch.autocast(device, low)(subject.call), rounded=low)

    truth = Truth.of(op, low)
    if exam.reference is None:
        found = low_run(op).every
        floats = {n: t for n, t in found.items() if t.is_floating_point() or t.is_complex()}
        return within(check, floats, truth.run.every, truth.allowed(), name)
    reference = op.on(exam.reference)
    try:
        theirs = low_run(reference).every
    except Exception as error:
        raise NotApplicableError(f"the reference raises {type(error).__name__}") from error
    exact = run(reference.to(torch.float64), rounded=low).every
    found, like = low_run(op).every, inputs_by_gradient(op)
    return beside(check, found, theirs, exact, like, name, truth.change)


def _on_meta(op: Subject) -> Subject:
    leaves = [leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in op.leaves]
    return replace(op, leaves=tuple(leaves))
