"""Checks of derivatives: every order and mode, each against finite differences of the one before.

The numbers come from ``differences``; here stands only which function is differentiated how.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manual_ops.check.causes import IMPURE, ONCE_DIFFERENTIABLE
from manual_ops.check.diagnosis import Wrong
from manual_ops.check.differences import Function, check_gradients, check_tangents, real
from manual_ops.check.exam import Check, Exam, draw_like
from manual_ops.check.graph import has_library_op, nodes_behind
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.subject import Subject

Tensors = tuple[Tensor, ...]

_NAN = (
    "Give inputs where the op is defined (--range 0.1 2 on the command line, for log or sqrt); if "
    "it is defined on these, forward is wrong."
)
_NOT_SCALED = (
    "It does not depend on grad_output: multiply what backward returns by it, also where the "
    "output is a loss."
)
_NO_TANGENT = "jvp is given None for an input that has no tangent: take it for 0."


def gradients(function: Function, tensors: Sequence[Tensor], cotangents: Tensors) -> Tensors:
    """The gradients of ``Re <function(*tensors), cotangents>``; zeros where there is none.

    Differentiable in both arguments wherever grad mode is on.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors]
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(function(*tensors), cotangents, strict=True)
            if output.requires_grad
        ]
        if not pairs:
            return tuple(torch.zeros_like(tensor) for tensor in tensors)
        outputs, cotangents = zip(*pairs, strict=True)
        found: Tensors = torch.autograd.grad(
            outputs,
            tensors,
            cotangents,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return found


def gradient_function(function: Function, inputs: int) -> Function:
    """The gradients as a function of ``inputs`` tensors and the cotangents."""
    return lambda *args: gradients(function, args[:inputs], args[inputs:])


def tangents(function: Function, tensors: Tensors, directions: Tensors) -> Tensors:
    """The derivatives of ``function`` along ``directions``, by forward mode."""
    with forward_ad.dual_level():
        outputs = function(*map(forward_ad.make_dual, tensors, directions))
        unpacked = [forward_ad.unpack_dual(output) for output in outputs]
        return tuple(
            torch.zeros_like(primal) if tangent is None else tangent for primal, tangent in unpacked
        )


def _has_tangents(op: Subject) -> bool:
    with forward_ad.dual_level():
        outputs = op(*map(forward_ad.make_dual, op.tensors, op.tensors))
        return any(forward_ad.unpack_dual(output).tangent is not None for output in outputs)


def tangent_function(function: Function, directions: Tensors) -> Function:
    """The derivatives along fixed ``directions``, by torch.func, so that they nest."""
    return lambda *tensors: torch.func.jvp(function, tensors, directions)[1]


def pullback_function(function: Function, cotangents: Tensors) -> Function:
    """The gradients for fixed ``cotangents``, by torch.func, so that they nest."""
    return lambda *tensors: torch.func.vjp(function, *tensors)[1](cotangents)


def gradient(check: Check, exam: Exam) -> Iterator[Row]:
    """Reverse mode against central differences, element by element."""
    op = exam.precise
    leaves = op.leaf_tensors()
    outputs = op(*leaves)
    undefined = sum(int(output.isnan().sum()) for output in outputs)
    if undefined:
        count = sum(output.numel() for output in outputs)
        yield check.failed("", f"forward is nan at {undefined} of {count} elements", cause=_NAN)
        return
    again = op(*op.leaf_tensors())
    if not all(map(partial(torch.allclose, rtol=1e-3, atol=1e-3), again, outputs)):
        yield check.failed("", "forward gives other numbers the second time", cause=IMPURE)
        return
    cotangents = draw_like(outputs, 1)
    found = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    filled = [
        torch.zeros_like(t) if g is None else g.to_dense()
        for t, g in zip(leaves, found, strict=True)
    ]
    findings = check_gradients(op, leaves, cotangents, filled)
    returned = dict(zip(op.tensor_names, filled, strict=True))
    for i, (name, finding) in enumerate(zip(op.tensor_names, findings, strict=True)):
        given, cause = found[i], ""
        if given is None:
            cause = "backward returns None for this input although the output depends on it."
        elif not finding.ok and _is_constant(op, i, cotangents, filled[i]):
            cause = _NOT_SCALED
        elif not finding.ok and finding.quotients is not None:
            expected = finding.quotients.to(real(given).dtype)
            cause = Wrong(
                given.detach(),
                torch.view_as_complex(expected) if given.is_complex() else expected,
                sizes={size for tensor in op.tensors for size in tensor.shape},
                others={other: g for other, g in returned.items() if other != name},
            ).diagnosis
        yield check.judged(name, finding, cause)


def _is_constant(op: Subject, i: int, cotangents: Tensors, gradient: Tensor) -> bool:
    """Whether the ``gradient`` of input ``i`` is the same for other ``cotangents``."""
    leaves, others = op.leaf_tensors(), draw_like(cotangents, 2)
    with torch.enable_grad():
        again = torch.autograd.grad(op(*leaves), leaves, others, allow_unused=True)[i]
    given = bool(gradient.any() and gradient.isfinite().all())
    return given and again is not None and torch.equal(again.to_dense(), gradient)


@contextmanager
def _no_data_of_batches() -> Iterator[None]:
    """Refuse ``.data`` of a batch of ``is_grads_batched``: whatever reads that ends the process.

    By the attribute, since torch switches modes off inside ``torch.autograd.grad``.
    """
    attribute: Any = Tensor.data

    def read(tensor: Tensor) -> Tensor:
        if torch._C._functorch.is_legacy_batchedtensor(tensor):
            raise RuntimeError("accessing `data` under vmap, of a batch of gradients")
        data: Tensor = attribute.__get__(tensor)
        return data

    Tensor.data = property(read, attribute.__set__)  # type: ignore[assignment]
    try:
        yield
    finally:
        del Tensor.data


def batched_gradient(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward of several cotangents at once (``is_grads_batched``) against one by one."""
    op = exam.given
    leaves = op.leaf_tensors()
    outputs = op(*leaves)
    batches = [draw_like(outputs, seed) for seed in (1, 2, 3)]
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    singly = [torch.autograd.grad(outputs, leaves, batch, **options) for batch in batches]
    stacked = [torch.stack(list(column)) for column in zip(*batches, strict=True)]
    options["materialize_grads"] = False  # it makes one zero for all
    with _no_data_of_batches():
        found = torch.autograd.grad(outputs, leaves, stacked, is_grads_batched=True, **options)
    for name, together, *apart in zip(op.tensor_names, found, *singly, strict=True):
        expected = torch.stack(apart)
        yield check.equal(
            name, torch.zeros_like(expected) if together is None else together, expected
        )


def double_backward(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward of backward, by inputs and by grad_output."""
    point, names = _first_order_point(exam)
    first, _ = _differentiable_gradients(exam.precise, point)
    yield _reverse(check, first, point, names)


def third_order(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward of double backward."""
    op = exam.precise
    point, names = _first_order_point(exam)
    first, which = _differentiable_gradients(op, point)
    second = gradient_function(first, len(point))
    directions = draw_like([op.tensors[i] for i in which], 20)
    names = (*names, *(f"direction of {op.tensor_names[i]}" for i in which))
    yield _reverse(check, second, (*point, *directions), names)


def forward_mode(check: Check, exam: Exam) -> Iterator[Row]:
    """Forward mode (``jvp``) against differences: all inputs with tangents, then each alone."""
    op = exam.precise
    if has_library_op(op(*op.leaf_tensors())) and not _has_tangents(op):
        raise NotApplicableError("forward mode: torch.library takes no formula for it")
    yield (together := _forward(check, op, op.tensors, tangents))
    cause = "" if together.failed else _NO_TANGENT
    if len(op.tensors) > 1:
        for i, name in enumerate(op.tensor_names):
            function, point, subject = _of_one(op, i), (op.tensors[i],), f"{name} alone"
            find = partial(_forward, check, function, point, tangents, subject, cause)
            yield check.attempt(subject, find)


def forward_over_reverse(check: Check, exam: Exam) -> Iterator[Row]:
    """Forward mode through backward."""
    op = exam.precise
    first = gradient_function(op, len(op.tensors))
    point, _ = _first_order_point(exam)
    with torch.enable_grad():
        yield _forward(check, first, tuple(t.requires_grad_() for t in point), tangents)


def reverse_over_forward(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward through forward mode."""
    op = exam.precise
    derivative = tangent_function(op, draw_like(op.tensors, 30))
    yield _reverse(check, derivative, op.tensors, op.tensor_names)


def forward_over_forward(check: Check, exam: Exam) -> Iterator[Row]:
    """Forward mode through forward mode (jvp of jvp)."""
    op = exam.precise
    derivative = tangent_function(op, draw_like(op.tensors, 30))
    yield _forward(check, derivative, op.tensors, _transformed_tangents)


def third_order_forward(check: Check, exam: Exam) -> Iterator[Row]:
    """Forward mode three times, and forward mode through grad of grad."""
    op = exam.precise
    second = tangent_function(op, draw_like(op.tensors, 30))
    second = tangent_function(second, draw_like(op.tensors, 40))
    yield _forward(check, second, op.tensors, _transformed_tangents, "jvp of jvp of jvp")
    with torch.no_grad():
        cotangents = draw_like(op(*op.tensors), 1)
    second = pullback_function(pullback_function(op, cotangents), draw_like(op.tensors, 20))
    yield _forward(check, second, op.tensors, _transformed_tangents, "jvp of grad of grad")


def _first_order_point(exam: Exam) -> tuple[Tensors, tuple[str, ...]]:
    """The inputs and cotangents that the gradients are functions of, and their names."""
    op = exam.precise
    with torch.no_grad():
        cotangents = draw_like(op(*op.tensors), 1)
    several = len(cotangents) > 1
    names = [f"grad_output {k}" if several else "grad_output" for k in range(len(cotangents))]
    return (*(t.clone() for t in op.tensors), *cotangents), (*op.tensor_names, *names)


def _differentiable_gradients(op: Subject, point: Tensors) -> tuple[Function, list[int]]:
    """The gradients as a function, but for those that are marked ``once_differentiable``.

    Also the indices of their inputs.
    """
    first = gradient_function(op, len(op.tensors))
    with torch.enable_grad():
        found = first(*(t.detach().requires_grad_() for t in point))
    kept = [
        i
        for i, gradient in enumerate(found)
        if all(node.name() != "torch::autograd::Error" for node in nodes_behind([gradient]))
    ]
    if not kept:
        raise NotApplicableError(ONCE_DIFFERENTIABLE)
    return lambda *args: tuple(g for i, g in enumerate(first(*args)) if i in kept), kept


def _reverse(check: Check, function: Function, point: Tensors, names: Sequence[str]) -> Row:
    """Differentiate ``function`` in reverse mode at ``point`` and judge it."""
    with torch.no_grad():
        cotangents = draw_like(function(*point), 10)
    leaves = tuple(t.detach().requires_grad_() for t in point)
    found = [g.detach() for g in gradients(function, leaves, cotangents)]
    findings = check_gradients(function, leaves, cotangents, found)
    return check.worst(zip(names, findings, strict=True))


def _of_one(op: Subject, i: int) -> Function:
    """``op`` as a function of its i-th tensor."""
    return lambda tensor: op(*op.tensors[:i], tensor, *op.tensors[i + 1 :])


def _forward(
    check: Check,
    function: Function,
    point: Tensors,
    differentiate: Callable[[Function, Tensors, Tensors], Tensors],
    subject: str = "",
    cause: str = "",
) -> Row:
    """Differentiate ``function`` along a direction at ``point`` and judge it."""
    directions = draw_like(point, 50)
    found = differentiate(function, point, directions)
    findings = check_tangents(function, point, directions, found)
    names = [f"output {k}" if len(found) > 1 else "" for k in range(len(found))]
    return check.worst(zip(names, findings, strict=True), subject, cause)


def _transformed_tangents(function: Function, tensors: Tensors, directions: Tensors) -> Tensors:
    return tangent_function(function, directions)(*tensors)
