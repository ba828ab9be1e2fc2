"""Checks of layouts in memory: of inputs, of grad_output, and of what comes out."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from manual_ops.check.exam import Check, Exam
from manual_ops.check.precision import REFERENCE, inputs_by_gradient
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.runs import Layout, Run, close, effective_strides, over, run, unlike
from manual_ops.check.subject import Subject


def transposed(tensor: Tensor) -> Tensor:
    """The same values, with the last two dimensions swapped in memory."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def strided(tensor: Tensor) -> Tensor:
    """The same values, every other element of a larger tensor."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    """The same values, channels last in memory where there are images or volumes."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() not in formats:
        return tensor
    return tensor.contiguous(memory_format=formats[tensor.dim()])


def expanded(tensor: Tensor) -> Tensor:
    """The first row, or value of a vector, repeated at stride 0."""
    return tensor[:1].expand(tensor.shape) if tensor.dim() else tensor


def expanded_whole(tensor: Tensor) -> Tensor:
    """The first value everywhere at stride 0, as the gradient of a sum is."""
    return tensor.flatten()[0].expand(tensor.shape) if tensor.numel() else tensor


# Of expanded inputs the rows are equal: dividing by their variance takes the digits of float64.
_IN_SINGLE = {"transposed": transposed, "strided": strided, "channels_last": channels_last}
_IN_DOUBLE = {"expanded": expanded}
_OF_GRADIENTS = _IN_SINGLE | {"expanded": expanded_whole}


def of_inputs(check: Check, exam: Exam) -> Iterator[Row]:
    """Transposed, strided, expanded and channels-last inputs against contiguous ones."""
    rows = []
    for table, op in ((_IN_SINGLE, exam.single), (_IN_DOUBLE, exam.precise)):
        for name, layout in table.items():
            if any(_changes(layout, tensor) for tensor in op.tensors):
                rows.append(check.attempt(name, partial(_laid_out, check, exam, op, name, layout)))
    if not rows:
        raise NotApplicableError("no input that can be laid out in another way")
    yield over(check, rows)


def of_grad_output(check: Check, exam: Exam) -> Iterator[Row]:
    """Transposed, strided, expanded and channels-last grad_output against a contiguous one."""
    op = exam.single
    with torch.no_grad():
        outputs = op(*op.tensors)
    rows = []
    for name, layout in _OF_GRADIENTS.items():

        def compare(name: str = name, layout: Layout = layout) -> Row:
            expected = run(op, grad_layout=lambda tensor: layout(tensor).contiguous())
            found = run(op, grad_layout=layout)
            return close(check, found.every, expected.every, name)

        if any(_changes(layout, output) for output in outputs):
            rows.append(check.attempt(name, compare))
    if not rows:
        raise NotApplicableError("no output that can be laid out in another way")
    yield over(check, rows)


def memory_formats(check: Check, exam: Exam) -> Iterator[Row]:
    """Of channels-last inputs: gradients keep the format where outputs do; or as the reference."""
    op = exam.single
    if not any(_changes(channels_last, tensor) for tensor in op.tensors):
        raise NotApplicableError("no input of four or five dimensions, with several channels")
    found = run(op, layout=channels_last)
    like = {name: channels_last(t) for name, t in inputs_by_gradient(op).items()}
    if exam.reference is not None:
        theirs = _reference_run(exam, op, channels_last)
        if theirs is None:
            raise NotApplicableError("the reference refuses this layout")
        difference = unlike(found.every, theirs.every, REFERENCE, like=like)
        yield check.failed("", difference) if difference else check.passed()
        return
    formats = {n: _format(t) for n, t in found.every.items() if t.dim() in (4, 5)}
    detail = ", ".join(f"{name} {format}" for name, format in formats.items())
    kept = all(formats.get(name) == "channels_last" for name in found.values)
    lost = any(
        effective_strides(tensor) != effective_strides(like[name])
        for name, tensor in found.gradients.items()
    )
    yield check.failed("", detail) if kept and lost else check.passed(detail=detail)


def _laid_out(check: Check, exam: Exam, op: Subject, name: str, layout: Layout) -> Row:
    try:
        expected = run(op, layout=lambda tensor: layout(tensor).contiguous())
    except Exception:  # equal rows make a matrix singular, say
        return check.passed(name)
    found = run(op, layout=layout)
    theirs = _reference_run(exam, op, layout)
    row = close(check, found.every, expected.every, name)
    if row.failed and op.random:
        if theirs is None:
            raise NotApplicableError("draws other random numbers for another layout")
        row = close(check, found.every, theirs.every, name)
    if row.failed or theirs is None:
        return row
    difference = unlike(found.values, theirs.values, REFERENCE)
    return check.failed(name, difference) if difference else row


def _reference_run(exam: Exam, op: Subject, layout: Layout) -> Run | None:
    """The reference on the inputs of ``op``; some of torch's own kernels refuse a layout."""
    if exam.reference is None:
        return None
    try:
        return run(op.on(exam.reference), layout=layout)
    except Exception:
        return None


def _changes(layout: Layout, tensor: Tensor) -> bool:
    return effective_strides(layout(tensor)) != effective_strides(tensor)


def _format(tensor: Tensor) -> str:
    if effective_strides(tensor) == effective_strides(tensor.contiguous()):
        return "contiguous"
    return "channels_last" if not _changes(channels_last, tensor) else "strided"
