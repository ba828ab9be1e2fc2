"""Checks of torch.func: vmap, per-sample gradients, Jacobians and Hessians."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vjp

from manual_ops.check.batches import SAMPLES, Batch, batches, outputs_of, product, value_of
from manual_ops.check.exam import Check, Exam, draw_like
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.runs import close, over
from manual_ops.check.subject import Subject

Tensors = tuple[Tensor, ...]
Leaves = list[Any]

DIRECTIONS = 4  # that Jacobians and Hessians are taken along

_OTHER_NUMBERS = "draws other random numbers under torch.func than outside it"


def batched(check: Check, exam: Exam) -> Iterator[Row]:
    """``vmap`` over all inputs and over each alone, against one sample at a time."""

    def compare(batch: Batch) -> Row:
        op, leaves = batch.op, batch.leaves()
        outputs = batch.vmap(partial(outputs_of, op))(*leaves)
        found = _named(op, leaves, outputs, batch.dim)
        expected = []
        for number in range(SAMPLES):
            leaves = batch.sample(number)
            expected.append(_named(op, leaves, outputs_of(op, *leaves)))
        return close(check, found, _stack(expected), batch.name)

    every, *parts = batches(exam.precise)
    with torch.no_grad():
        yield _in_batches(check, [every, replace(every, dim=-1), *parts], compare)


def per_sample_gradients(check: Check, exam: Exam) -> Iterator[Row]:
    """``vmap`` of ``grad``, against one sample at a time."""
    op = exam.precise
    weights = _weights(op)

    def compare(batch: Batch) -> Row:
        gradient = grad(partial(value_of, op, weights), op.differentiable)
        found = batch.vmap(gradient)(*batch.leaves())
        expected = _stack(batch.gradients(number, weights) for number in range(SAMPLES))
        return close(check, dict(zip(op.tensor_names, found, strict=True)), expected, batch.name)

    yield _in_batches(check, batches(op), compare)


def backward_through_vmap(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward from outside of ``vmap``, of all inputs and of the first alone."""
    op = exam.precise
    weights = _weights(op)

    def compare(wanted: Sequence[int], batch: Batch) -> Row:
        leaves = batch.leaves()
        inputs = {op.names[i]: leaves[i].requires_grad_() for i in wanted}
        with torch.enable_grad():
            values = batch.vmap(partial(value_of, op, weights))(*leaves)
        factors = torch.arange(1, SAMPLES + 1).to(values)  # one mixed up with another would show
        found = torch.autograd.grad(
            values, list(inputs.values()), factors, allow_unused=True, materialize_grads=True
        )
        samples = [
            {name: factor * gradient for name, gradient in batch.gradients(i, weights).items()}
            for i, factor in enumerate(factors)
        ]
        subject = "" if len(wanted) > 1 else f"{op.names[wanted[0]]} alone:"
        return close(check, dict(zip(inputs, found, strict=True)), _stack(samples, -1), subject)

    # Batched along the last dimension, so that no formula relies on a leading one.
    batch = replace(next(batches(op)), dim=-1)
    for wanted in dict.fromkeys((op.differentiable[:1], op.differentiable)):
        row = _in_batches(check, [batch], partial(compare, wanted))
        if row.verdict != "pass" or wanted == op.differentiable:
            yield row
            return


def jacobian(check: Check, exam: Exam) -> Iterator[Row]:
    """``jacrev`` and ``jacfwd``, along random directions, against backward row by row."""
    op = exam.precise
    projections = [_weights(op, seed) for seed in range(DIRECTIONS)]

    def function(steps: Tensor) -> Tensor:
        outputs = op(*_moved(op, steps))
        return torch.stack([product(outputs, weights) for weights in projections])

    steps = _no_steps(op)
    _assert_same_numbers(op, function, steps)
    expected = {"": torch.autograd.functional.jacobian(function, steps)}
    yield close(check, {"": jacrev(function)(steps)}, expected, "jacrev")
    yield close(check, {"": jacfwd(function, randomness="same")(steps)}, expected, "jacfwd")


def hessian(check: Check, exam: Exam) -> Iterator[Row]:
    """``jacfwd`` over ``jacrev``, along random directions, against double backward."""
    op = exam.precise
    weights = _weights(op)

    def function(steps: Tensor) -> Tensor:
        return product(op(*_moved(op, steps)), weights)

    steps = _no_steps(op)
    _assert_same_numbers(op, function, steps)
    expected = torch.autograd.functional.hessian(function, steps)
    found = jacfwd(jacrev(function), randomness="same")(steps)
    yield close(check, {"": found}, {"": expected})


def _assert_same_numbers(op: Subject, function: Callable[[Tensor], Tensor], steps: Tensor) -> None:
    if op.random and not torch.allclose(vjp(function, steps)[0], function(steps)):
        raise NotApplicableError(_OTHER_NUMBERS)


def _in_batches(check: Check, batches: Iterable[Batch], compare: Callable[[Batch], Row]) -> Row:
    """The first of the batches to fail, or the one of the largest error."""

    def judge(batch: Batch) -> Row:
        row = compare(batch)
        if row.failed and batch.op.random:
            same = replace(batch, samples=[batch.samples[0]] * SAMPLES)
            if compare(same).failed:  # no mix-up of samples
                raise NotApplicableError(_OTHER_NUMBERS)
        return row

    return over(check, (check.attempt(b.name, partial(judge, b)) for b in batches))


def _weights(op: Subject, seed: int = 0) -> Tensors:
    with torch.no_grad():
        return draw_like(op(*op.tensors), 100 * seed + 1)


def _moved(op: Subject, steps: Tensor) -> Tensors:
    """The inputs, moved by so much along each of several random directions."""
    directions = zip(*(draw_like(op.tensors, 100 * k) for k in range(len(steps))), strict=True)
    return tuple(
        tensor + sum(step * d for step, d in zip(steps.unbind(), along, strict=True))
        for tensor, along in zip(op.tensors, directions, strict=True)
    )


def _no_steps(op: Subject) -> Tensor:
    first = op.tensors[0]
    return torch.zeros(DIRECTIONS, dtype=first.real.dtype, device=first.device)


def _named(op: Subject, leaves: Leaves, outputs: Tensors, dim: int = 0) -> dict[str, Tensor]:
    """Outputs and what was updated in place, by name; the latter batched along ``dim``."""
    named = {f"output {k}" if len(outputs) > 1 else "output": o for k, o in enumerate(outputs)}
    return named | {f"updated {op.names[i]}": leaves[i].movedim(dim, 0) for i in op.mutable}


def _stack(samples: Any, dim: int = 0) -> dict[str, Tensor]:
    samples = list(samples)
    return {name: torch.stack([s[name] for s in samples], dim) for name in samples[0]}
