"""Several samples of an op's inputs: stacked for vmap, or in a longer or shorter batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from manual_ops.check.exam import refusal
from manual_ops.check.report import NotApplicableError
from manual_ops.check.subject import Subject

Tensors = tuple[Tensor, ...]
Leaves = list[Any]

SAMPLES = 3
ALONE = 8  # so many inputs are batched one at a time, the last ones: a module's state comes first


@dataclass(frozen=True)
class Batch:
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
        chosen = sorted(self.stacked - set(self.op.buffers))
        names = "all" if every else ", ".join(self.op.names[i] for i in chosen)
        return f"{names} batched in dimension {self.dim}:"

    def sample(self, number: int) -> Leaves:
        """All leaves of one sample, fresh copies."""
        pairs = enumerate(zip(self.samples[0], self.samples[number], strict=True))
        return [_copy(own if i in self.stacked else first) for i, (first, own) in pairs]

    def leaves(self) -> Leaves:
        """All leaves for vmap, fresh copies."""
        columns = enumerate(zip(*map(self.sample, range(SAMPLES)), strict=True))
        return [torch.stack(c, self.dim) if i in self.stacked else c[0] for i, c in columns]

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, of all leaves, mapped over the samples."""
        indices = range(len(self.op.leaves))
        in_dims = tuple(self.dim if i in self.stacked else None for i in indices)
        return vmap(function, in_dims, randomness="same")

    def gradients(self, number: int, weights: Tensors) -> dict[str, Tensor]:
        """Gradients of ``<outputs, weights>`` of one sample, without vmap."""
        leaves = self.sample(number)
        inputs = [leaves[i].requires_grad_() for i in self.op.differentiable]
        with torch.enable_grad():
            value = value_of(self.op, weights, *leaves)
        found = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        return dict(zip(self.op.tensor_names, found, strict=True))


def batches(op: Subject) -> Iterator[Batch]:
    """All tensors batched, then each alone, then all but each.

    What the op updates in place is always batched: one running mean cannot follow several samples.
    """
    samples = _samples(op)
    every = frozenset(_tensors(op))
    own = frozenset(op.mutable)
    single = [i for i in _tensors(op) if i not in own][-ALONE:]
    choices = [every, *(own | {i} for i in single), *(every - {i} for i in single)]
    for stacked in dict.fromkeys(choices):
        if stacked - set(op.buffers):
            yield Batch(op, samples, stacked)


def _samples(op: Subject) -> list[Leaves]:
    """Inputs that differ from sample to sample as far as the op takes them."""
    for changed in (_tensors(op), op.differentiable):
        samples = [
            [_sample(x, number) if i in changed else x for i, x in enumerate(op.leaves)]
            for number in range(SAMPLES)
        ]
        try:
            for leaves in samples:
                outputs_of(op, *map(_copy, leaves))
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


def resized(op: Subject, change: Callable[[Tensor], Tensor]) -> tuple[Subject, tuple[int, ...]]:
    """The op on a batch of another size, and the indices of the leaves that have that dimension.

    Args:
        op: The op.
        change: Makes the first dimension of a tensor longer or shorter.

    Raises:
        NotApplicableError: There is no such dimension, or the op refuses that size.
    """
    candidates = [
        i
        for i in op.arguments
        if isinstance(op.leaves[i], Tensor) and op.leaves[i].dim() and i not in op.buffers
    ]
    if not candidates:
        raise NotApplicableError("no input has a dimension")
    size = len(op.leaves[candidates[0]])
    fitting = tuple(i for i in candidates if len(op.leaves[i]) == size)
    for chosen in dict.fromkeys((fitting[:1], fitting, fitting[:2])):
        if refusal(_changed(op, chosen, lambda tensor: torch.cat([tensor, tensor]))):
            continue
        other = _changed(op, chosen, change)
        refused = refusal(other)
        if refused:
            lines = str(refused).splitlines() or [""]
            raise NotApplicableError(f"{type(refused).__name__}: {lines[0]}")
        return other, chosen
    raise NotApplicableError(f"the first dimension of {op.names[candidates[0]]} is no batch")


def _changed(op: Subject, indices: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Subject:
    changed = (change(x) if i in indices else x for i, x in enumerate(op.leaves))
    return replace(op, leaves=tuple(changed))


def outputs_of(op: Subject, *leaves: Any) -> Tensors:
    """All tensors that the op returns."""
    if op.random:
        torch.manual_seed(op.seed)
    returned = op.call(*op.spared(leaves))
    return tuple(o for o in tree_leaves(returned) if isinstance(o, Tensor))


def value_of(op: Subject, weights: Tensors, *leaves: Any) -> Tensor:
    """``Re <outputs, weights>`` of the differentiable outputs."""
    if op.random:
        torch.manual_seed(op.seed)
    return product(op.differentiable_of(op.call(*op.spared(leaves))), weights)


def product(outputs: Tensors, weights: Tensors) -> Tensor:
    """``Re <outputs, weights>``."""
    products = [(o * w.conj()).sum() for o, w in zip(outputs, weights, strict=True)]
    return torch.stack([p.real if p.is_complex() else p for p in products]).sum()


def _tensors(op: Subject) -> tuple[int, ...]:
    return tuple(i for i, leaf in enumerate(op.leaves) if isinstance(leaf, Tensor))


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
