"""Checks of accuracy: by itself in every dtype, and beside a reference.

How far rounding may take a result from the truth depends on the op, so it is measured: the op runs
in float64 on inputs and cotangents that are off by rounding. A good algorithm in low precision is
off by a few times what that changes, and a few units in the last place; sums over many terms are
allowed what they need, and a difference of large numbers that nothing calls for is found.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from manual_ops.check.exam import Check, Exam, refusal
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.runs import Layout, Named, Run, largest, over, run, unlike, within
from manual_ops.check.subject import Subject

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

REFERENCE = "the reference's"  # what a tensor is compared with, in messages

_TRIALS = 3
_SLACK = 3.0


def precision(check: Check, exam: Exam) -> Iterator[Row]:
    """Values and gradients in float32, bfloat16 and float16 against those in float64."""
    real = not any(tensor.is_complex() for tensor in exam.given.tensors)
    for dtype in DTYPES[1:] if real else DTYPES[1:2]:  # complex numbers are no shorter
        op = exam.given.to(dtype)
        refused = refusal(op)
        if refused is None:
            yield check.attempt(plain(dtype), partial(_precise, check, exam, op, dtype))
        else:
            detail = check.raised(refused).detail
            yield Row(check.name, "n/a", plain(dtype), detail=f"refused: {detail}")


def values_against_reference(check: Check, exam: Exam) -> Iterator[Row]:
    """Outputs and what is updated in place beside the reference's, in four dtypes."""
    yield from _against_reference(check, exam, "values")


def gradients_against_reference(check: Check, exam: Exam) -> Iterator[Row]:
    """Gradients beside the reference's, in four dtypes: dtype, shape, strides and error."""
    yield from _against_reference(check, exam, "gradients")


@dataclass(frozen=True)
class Truth:
    """An op in float64, and how far rounding of what it is given changes that.

    Attributes:
        run: Values and gradients.
        change: Largest change of each.
        dtype: That the inputs and cotangents were rounded to.
    """

    run: Run
    change: dict[str, float]
    dtype: torch.dtype

    @classmethod
    def of(cls, op: Subject, dtype: torch.dtype) -> "Truth":
        """Run ``op`` in float64, and on numbers that are off by the rounding of ``dtype``.

        Raises:
            NotApplicableError: It does something else in float64.
        """
        given, op, eps = op, op.to(torch.float64), torch.finfo(dtype).eps
        if refusal(op):
            raise NotApplicableError("the op takes no float64, to compare with")
        if op.random and not refusal(given) and given.drawn() != op.drawn():
            raise NotApplicableError("the op draws other random numbers in float64")
        exact = run(op, rounded=dtype)
        change = dict.fromkeys(exact.every, 0.0)
        for seed in range(_TRIALS):
            shrink = _shrink(eps, seed)
            moved = run(op.map(shrink), rounded=dtype, grad_layout=shrink).every
            for name, tensor in exact.every.items():
                if tensor.is_floating_point() or tensor.is_complex():
                    change[name] = max(change[name], largest(moved[name] - tensor))
        return cls(exact, change, dtype)

    def allowed(self) -> dict[str, float]:
        """The error allowed for each value and gradient."""
        sizes = {name: largest(tensor) for name, tensor in self.run.every.items()}
        info = torch.finfo(self.dtype)
        # What is zero but for rounding has the rounding of the others.
        least = 8 * info.eps * max(sizes.values(), default=0.0) + info.smallest_normal
        return {n: _SLACK * (self.change[n] + info.eps * size) + least for n, size in sizes.items()}


def allowed_beside(found: Named, theirs: Named, truth: Named) -> dict[str, float]:
    """The error allowed beside a reference's: twice its own, and a few units in the last place."""
    allowed = {}
    for name, tensor in found.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            allowed[name] = 0.0
            continue
        own = largest(theirs[name].to(truth[name].dtype) - truth[name])
        eps = torch.finfo(tensor.dtype).eps
        # All drawn numbers are of order one: where terms cancel, a trace of their rounding remains.
        allowed[name] = 2 * own + eps * (8 * largest(truth[name]) + 2)
    return allowed


def beside(
    check: Check,
    found: Named,
    theirs: Named,
    truth: Named,
    like: Named,
    name: str,
    least: Mapping[str, float] | None = None,
) -> Row:
    """A row on tensors that must be like a reference's, and about as accurate.

    Args:
        check: The check.
        found: Tensors under check.
        theirs: The reference's.
        truth: The reference's in float64.
        like: Tensors whose strides are as good.
        name: What the row is about.
        least: Errors allowed however accurate the reference is.
    """
    difference = unlike(found, theirs, REFERENCE, like=like)
    if difference:
        return check.failed(name, difference)
    truth = {  # also where the reference overflows, or returns integers
        name: torch.where(t.isfinite(), truth[name], t.to(truth[name].dtype))
        if t.is_floating_point() or t.is_complex()
        else t
        for name, t in theirs.items()
    }
    allowed = allowed_beside(found, theirs, truth)
    for tensor, error in (least or {}).items():
        allowed[tensor] = max(allowed[tensor], error)
    return within(check, found, truth, allowed, name)


def inputs_by_gradient(op: Subject) -> dict[str, Tensor]:
    """The differentiable inputs, by the names that their gradients have in a run."""
    pairs = zip(op.tensor_names, op.tensors, strict=True)
    return {f"gradient of {name}": tensor for name, tensor in pairs}


def plain(dtype: torch.dtype) -> str:
    """The name of a dtype without the package's."""
    return str(dtype).removeprefix("torch.")


def _precise(check: Check, exam: Exam, op: Subject, dtype: torch.dtype) -> Row:
    found = run(op, rounded=dtype)
    wider = _promoted(found, op, dtype)
    if wider:
        if any(t.dtype == dtype for t in exam.given.tensors) or op.function_class:
            return check.failed(
                plain(dtype), wider, cause="Cast what forward makes to the dtype of its inputs."
            )
        raise NotApplicableError(wider)
    truth = Truth.of(op, dtype)
    floats = {n: t for n, t in found.every.items() if t.is_floating_point() or t.is_complex()}
    return within(check, floats, truth.run.every, truth.allowed(), plain(dtype))


def _promoted(found: Run, op: Subject, dtype: torch.dtype) -> str:
    """Which output has a wider dtype than all inputs, unless one was asked for."""
    if any(isinstance(leaf, torch.dtype) for leaf in op.leaves):
        return ""
    for name, value in found.values.items():
        if value.is_floating_point() and torch.promote_types(value.dtype, dtype) != dtype:
            return f"{name} is {plain(value.dtype)} of inputs in {plain(dtype)}"
    return ""


def _against_reference(
    check: Check, exam: Exam, part: Literal["values", "gradients"]
) -> Iterator[Row]:
    if exam.reference is None:
        raise NotApplicableError("no reference given")
    rows = []
    real = not any(tensor.is_complex() for tensor in exam.given.tensors)
    for dtype in DTYPES if real else DTYPES[:2]:
        reference = exam.reference.to(dtype)
        try:
            theirs = run(reference, rounded=dtype)
            truth = run(reference.to(torch.float64), rounded=dtype)
        except Exception:  # a dtype that the reference does not know is not the op's to know
            continue
        op = exam.given.to(dtype)
        compare = partial(_beside_reference, check, op, theirs, truth, part, dtype)
        rows.append(check.attempt(plain(dtype), compare))
    if not rows:
        raise NotApplicableError("the reference takes none of the dtypes")
    failed = [row for row in rows if row.failed]
    yield from failed or [over(check, rows)]


def _beside_reference(
    check: Check, op: Subject, theirs: Run, truth: Run, part: str, dtype: torch.dtype
) -> Row:
    found = getattr(run(op, rounded=dtype), part)
    like = inputs_by_gradient(op)
    return beside(check, found, getattr(theirs, part), getattr(truth, part), like, plain(dtype))


def _shrink(eps: float, seed: int) -> Layout:
    """Make every number smaller by rounding; larger it may leave where the op is defined."""
    generator = torch.Generator().manual_seed(seed)

    def shrink(tensor: Tensor) -> Tensor:
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor * (1 - 2 * eps * drawn.to(tensor.device))

    return shrink
