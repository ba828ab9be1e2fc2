"""What a wrong gradient looks like beside the right one: the trace of a usual mistake."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from manual_ops.check.causes import NOT_FINITE

_CLOSE = 1e-4  # relative; finite differences in float64 are closer


@dataclass(frozen=True)
class Wrong:
    """A wrong gradient and the right one.

    Attributes:
        found: What backward returned.
        expected: What it had to return, of the same shape.
        sizes: Of the dimensions of the op's inputs: a mean taken for a sum is off by one of them.
        others: What backward returned for the other inputs, by name.
    """

    found: Tensor
    expected: Tensor
    sizes: Iterable[int] = ()
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def diagnosis(self) -> str:
        """How the one is related to the other; empty if that cannot be told."""
        relations = _OF_ELEMENTS if self.is_like(self.found) else _RELATIONS
        return next(filter(None, (relation(self) for relation in relations)), "")

    def is_like(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is what had to be returned, as a whole."""
        error = (tensor - self.expected).norm()
        return tensor.numel() > 1 and bool(error <= _CLOSE * self.expected.norm())

    @cached_property
    def dims(self) -> list[tuple[int, ...]]:
        """Every choice of dimensions along which there is more than one element."""
        long = [dim for dim, size in enumerate(self.found.shape) if size > 1]
        return [dims for n in range(1, len(long) + 1) for dims in combinations(long, n)]


def _zero(wrong: Wrong) -> str:
    return "" if wrong.found.any() else "It is zero everywhere: backward does not reach this input."


def _not_due(wrong: Wrong) -> str:
    return "" if wrong.expected.any() else "It has to be zero: the output does not depend on this."


def _not_finite(wrong: Wrong) -> str:
    count = int((~wrong.found.isfinite()).sum())
    return f"{count} elements are {NOT_FINITE}" if count else ""


def _swapped(wrong: Wrong) -> str:
    for name, other in wrong.others.items():
        if other.shape == wrong.expected.shape and wrong.is_like(other):
            return f"It is what backward returns for {name}: gradients have changed places."
    return ""


def _conjugate(wrong: Wrong) -> str:
    if wrong.found.is_complex() and wrong.is_like(wrong.found.conj()):
        return "It is the conjugate of the right one: multiply by the derivative's conjugate."
    return ""


def _factor(wrong: Wrong) -> str:
    product = torch.vdot(wrong.expected.flatten(), wrong.found.flatten()).real
    factor = float(product / wrong.expected.norm() ** 2)
    if not factor or not wrong.is_like(wrong.found / factor):
        return ""
    if abs(factor + 1) < _CLOSE:
        return "It has the wrong sign."
    text = f"It is {factor:.4g} times the right one: a factor is missing, or one too many"
    for size in sorted(set(wrong.sizes) - {1}):
        if min(abs(factor - size), abs(1 / factor - size)) < _CLOSE * size:
            return f"{text}. A dimension has size {size}: a mean has been taken for a sum?"
    return f"{text}."


def _transposed(wrong: Wrong) -> str:
    for a, b in combinations(range(wrong.found.dim()), 2):
        shape = wrong.found.shape
        if shape[a] == shape[b] and wrong.is_like(wrong.found.transpose(a, b)):
            return f"It is the right one with dimensions {a} and {b} changed places: transpose it."
    return ""


def _flipped(wrong: Wrong) -> str:
    flips = (dims for dims in wrong.dims if wrong.is_like(wrong.found.flip(dims)))
    return next((f"It is the right one flipped along {_named(dims)}." for dims in flips), "")


def _without_a_mean(wrong: Wrong) -> str:
    error = wrong.expected - wrong.found
    for dims in wrong.dims:
        if wrong.is_like(wrong.found + error.mean(dims, keepdim=True)):
            what = f"What is missing is the same along {_named(dims)}"
            return f"{what}: a term with the mean or the sum over it."
    return ""


def _some_elements(wrong: Wrong) -> str:
    size = wrong.expected.abs()
    right = (wrong.expected - wrong.found).abs() <= _CLOSE * (size + 0.01 * size.max())
    count, every = int((~right).sum()), right.numel()
    if not 0 < count <= every / 2:
        return ""
    return f"It is right but for {count} of {every} elements: an index, a border or a branch."


def _nearly(wrong: Wrong) -> str:
    return "It is nearly right: an approximation, a rounded constant, or a lower precision."


_RELATIONS: tuple[Callable[[Wrong], str], ...] = (
    *(_zero, _not_due, _not_finite, _swapped, _conjugate, _factor, _transposed, _flipped),
    *(_without_a_mean, _some_elements),
)
_OF_ELEMENTS = (_some_elements, _nearly)


def _named(dims: tuple[int, ...]) -> str:
    return f"dimension{'s' if len(dims) > 1 else ''} {', '.join(map(str, dims))}"
