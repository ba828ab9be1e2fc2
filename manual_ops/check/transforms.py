"""Checks of torch.func: vmap, per-sample gradients, Jacobians and Hessians."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vjp, vmap
from torch.utils._pytree import tree_leaves

from manual_ops.check.derivatives import draw_like
from manual_ops.check.exam import Check, Exam
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.runs import close, one
from manual_ops.check.subject import Subject

Tensors = tuple[Tensor, ...]
Leaves = list[Any]

SAMPLES = 3
ALONE = 8  # so many inputs are batched one at a time, the last ones: a module's state comes first
DIRECTIONS = 4  # that Jacobians and Hessians are taken along

_OTHER_NUMBERS = "draws other random numbers under torch.func than outside it"


@dataclass(frozen=True)
class _Batch:
    """Several samples of an op's inputs, some of them stacked for vmap.

    Attributes:
        op: The op.
        samples: ``SAMPLES`` lists of all leaves.
        stacked: Indices of the leaves that are batched; the others are those of the first sample.
        dim: Along which they are.
    """

    op: Subject
    samples: Sequence[Leaves]
    stacked: frozenset[int]
    dim: int = 0

    @property
    def name(self) -> str:
        """What is batched, to be read."""
        every = self.stacked == frozenset(_tensors(self.op))
        names = "all" if every else ", ".join(self.op.names[i] for i in sorted(self.stacked))
        return f"{names} batched in dimension {self.dim}:"

    def sample(self, number: int) -> Leaves:
        """All leaves of one sample, fresh copies."""
        pairs = enumerate(zip(self.samples[0], self.samples[number], strict=True))
        return [_copy(own if i in self.stacked else first) for i, (first, own) in pairs]

    def leaves(self) -> Leaves:
        """All leaves for vmap, fresh copies."""
        columns = enumerate(zip(*map(self.sample, range(SAMPLES)), strict=True))
        return [torch.stack(c, self.dim) if i in self.stacked else c[0] for i, c in columns]

    def vmap(self, function: Callable[..., Any], leaves: Leaves) -> Any:
        """Map ``function``, of all leaves, over the samples."""
        in_dims = tuple(self.dim if i in self.stacked else None for i in range(len(leaves)))
        return vmap(function, in_dims, randomness="same")(*leaves)

    def gradients(self, number: int, weights: Tensors) -> dict[str, Tensor]:
        """Gradients of ``<outputs, weights>`` of one sample, without vmap."""
        leaves = self.sample(number)
        inputs = [leaves[i].requires_grad_() for i in self.op.differentiable]
        with torch.enable_grad():
            value = _value(self.op, weights, *leaves)
        found = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        return dict(zip(self.op.tensor_names, found, strict=True))


def batched(check: Check, exam: Exam) -> Iterator[Row]:
    """``vmap`` over all inputs and over each alone, against one sample at a time."""

    def compare(batch: _Batch) -> Row:
        leaves = batch.leaves()
        found = _outputs(batch.op, leaves, batch.vmap(partial(_call, batch.op), leaves), batch.dim)
        expected = []
        for number in range(SAMPLES):
            leaves = batch.sample(number)
            expected.append(_outputs(batch.op, leaves, _call(batch.op, *leaves)))
        return close(check, found, _stack(expected), batch.name)

    batches = list(_batches(exam.precise))
    last = replace(batches[0], dim=-1)
    with torch.no_grad():
        yield _over(check, [batches[0], last, *batches[1:]], compare)


def per_sample_gradients(check: Check, exam: Exam) -> Iterator[Row]:
    """``vmap`` of ``grad``, against one sample at a time."""
    op = exam.precise
    weights = _weights(op)

    def compare(batch: _Batch) -> Row:
        gradient = grad(partial(_value, op, weights), op.differentiable)
        found = batch.vmap(gradient, batch.leaves())
        expected = _stack(batch.gradients(number, weights) for number in range(SAMPLES))
        return close(check, dict(zip(op.tensor_names, found, strict=True)), expected, batch.name)

    yield _over(check, _batches(op), compare)


def backward_through_vmap(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward from outside of ``vmap``, of all inputs and of the first alone."""
    op = exam.precise
    weights = _weights(op)

    def compare(wanted: Sequence[int], batch: _Batch) -> Row:
        leaves = batch.leaves()
        inputs = {op.names[i]: leaves[i].requires_grad_() for i in wanted}
        with torch.enable_grad():
            values = batch.vmap(partial(_value, op, weights), leaves)
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
    batch = replace(next(_batches(op)), dim=-1)
    for wanted in dict.fromkeys((op.differentiable[:1], op.differentiable)):
        row = _over(check, [batch], partial(compare, wanted))
        if row.verdict != "pass" or wanted == op.differentiable:
            yield row
            return


def jacobian(check: Check, exam: Exam) -> Iterator[Row]:
    """``jacrev`` and ``jacfwd``, along random directions, against backward row by row."""
    op = exam.precise
    projections = [_weights(op, seed) for seed in range(DIRECTIONS)]

    def function(steps: Tensor) -> Tensor:
        outputs = op(*_moved(op, steps))
        return torch.stack([_product(outputs, weights) for weights in projections])

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
        return _product(op(*_moved(op, steps)), weights)

    steps = _no_steps(op)
    _assert_same_numbers(op, function, steps)
    expected = torch.autograd.functional.hessian(function, steps)
    found = jacfwd(jacrev(function), randomness="same")(steps)
    yield close(check, {"": found}, {"": expected})


def _assert_same_numbers(op: Subject, function: Callable[[Tensor], Tensor], steps: Tensor) -> None:
    if op.random and not torch.allclose(vjp(function, steps)[0], function(steps)):
        raise NotApplicableError(_OTHER_NUMBERS)


def _batches(op: Subject) -> Iterator[_Batch]:
    """All tensors batched, then each alone, then all but each.

    What the op updates in place is always batched: one running mean cannot follow several samples.
    """
    samples = _samples(op)
    every = frozenset(_tensors(op))
    own = frozenset(op.mutable)
    single = [i for i in _tensors(op) if i not in own][-ALONE:]
    choices = [every, *(own | {i} for i in single), *(every - {i} for i in single)]
    for stacked in dict.fromkeys(choices):
        if stacked - own:
            yield _Batch(op, samples, stacked)


def _samples(op: Subject) -> list[Leaves]:
    """Inputs that differ from sample to sample as far as the op takes them."""
    for changed in (_tensors(op), op.differentiable):
        samples = [
            [_sample(x, number) if i in changed else x for i, x in enumerate(op.leaves)]
            for number in range(SAMPLES)
        ]
        try:
            for leaves in samples:
                _call(op, *map(_copy, leaves))
        except Exception:  # indices and lengths that have to fit together, say
            continue
        return samples
    return [list(op.leaves)] * SAMPLES


def _sample(leaf: Tensor, number: int) -> Tensor:
    """The same numbers at other places, so that they stay where the op is defined and smooth."""
    if leaf.dim():
        leaf = leaf.roll([number] * leaf.dim(), list(range(leaf.dim())))
    shrink = leaf.is_floating_point() or leaf.is_complex()
    return leaf * (1 - number / 64) if shrink else leaf


def _over(check: Check, batches: Iterable[_Batch], compare: Callable[[_Batch], Row]) -> Row:
    """The first of the batches to fail, or the one of the largest error."""

    def judge(batch: _Batch) -> Row:
        row = compare(batch)
        if row.failed and batch.op.random:
            same = replace(batch, samples=[batch.samples[0]] * SAMPLES)
            if compare(same).failed:  # no mix-up of samples
                raise NotApplicableError(_OTHER_NUMBERS)
        return row

    return one(check, (check.attempt(b.name, partial(judge, b)) for b in batches))


def _call(op: Subject, *leaves: Any) -> Tensors:
    """All tensors that the op returns."""
    if op.random:
        torch.manual_seed(op.seed)
    return tuple(o for o in tree_leaves(op.call(*leaves)) if isinstance(o, Tensor))


def _value(op: Subject, weights: Tensors, *leaves: Any) -> Tensor:
    """``Re <outputs, weights>`` of the differentiable outputs."""
    if op.random:
        torch.manual_seed(op.seed)
    return _product(op.differentiable_of(op.call(*leaves)), weights)


def _product(outputs: Tensors, weights: Tensors) -> Tensor:
    products = [(o * w.conj()).sum() for o, w in zip(outputs, weights, strict=True)]
    return torch.stack([p.real if p.is_complex() else p for p in products]).sum()


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


def _outputs(op: Subject, leaves: Leaves, outputs: Tensors, dim: int = 0) -> dict[str, Tensor]:
    """Outputs and what was updated in place, by name; the latter batched along ``dim``."""
    named = {f"output {k}" if len(outputs) > 1 else "output": o for k, o in enumerate(outputs)}
    return named | {f"updated {op.names[i]}": leaves[i].movedim(dim, 0) for i in op.mutable}


def _stack(samples: Any, dim: int = 0) -> dict[str, Tensor]:
    samples = list(samples)
    return {name: torch.stack([s[name] for s in samples], dim) for name in samples[0]}


def _tensors(op: Subject) -> tuple[int, ...]:
    return tuple(i for i, leaf in enumerate(op.leaves) if isinstance(leaf, Tensor))


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
