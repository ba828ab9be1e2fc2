"""How the tensor arguments of cases are drawn.

In float64 or int64 from a seeded generator, to be rounded to the dtype under test: the float64
truth of a low-precision run is then computed from the very same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Draw:
    """How one tensor argument is drawn, and whether its gradient is part of the contract."""

    sample: Callable[[Generator], Tensor]
    differentiable: bool = True


def normal(*shape: int) -> Draw:
    """Standard normal numbers."""
    return Draw(lambda g: torch.randn(shape, generator=g, dtype=torch.float64))


def uniform(*shape: int, low: float, high: float) -> Draw:
    """Numbers between ``low`` and ``high``."""
    return Draw(lambda g: low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64))


def spread(*shape: int) -> Draw:
    """Distinct values, 0.25 apart and 0.125 away from zero: no kink or tie within a step of 0.1."""

    def sample(g: Generator) -> Tensor:
        count = torch.Size(shape).numel()
        grid = (torch.arange(count, dtype=torch.float64) - count // 2) * 0.25 + 0.125
        return grid[torch.randperm(count, generator=g)].reshape(shape)

    return Draw(sample)


def probabilities(*shape: int, dim: int) -> Draw:
    """Positive numbers that sum to one along ``dim``."""
    return Draw(lambda g: torch.randn(shape, generator=g, dtype=torch.float64).softmax(dim))


def labels(*shape: int, classes: int) -> Draw:
    """Class indices, int64 below ``classes``."""
    return Draw(lambda g: torch.randint(classes, shape, generator=g), differentiable=False)


def given(values: int | list[int]) -> Draw:
    """Class indices written out."""
    return Draw(lambda g: torch.tensor(values), differentiable=False)


def booleans(*shape: int, share: float = 0.7) -> Draw:
    """A mask of which about ``share`` is True."""
    return Draw(lambda g: torch.rand(shape, generator=g) < share, differentiable=False)


def constant(draw: Draw) -> Draw:
    """The same numbers, for an argument that torch.nn has no gradient for either."""
    return replace(draw, differentiable=False)
