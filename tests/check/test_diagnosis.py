"""The trace that each usual mistake leaves in a gradient."""

import pytest
import torch

from manual_ops.check import check
from manual_ops.check.diagnosis import Wrong
from tests.check.right_ops import Linear, linear_backward, normal

RIGHT = normal(4, 4)
ONE_WRONG = RIGHT.index_put((torch.tensor(1), torch.tensor(2)), 1.01 * RIGHT[1, 2])
COMPLEX = normal(4, dtype=torch.complex128)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (torch.zeros(4, 4), "zero everywhere"),
        (-RIGHT, "wrong sign"),
        (2.5 * RIGHT, "2.5 times the right one: a factor"),
        (RIGHT / 7, "size 7: a mean has been taken for a sum?"),
        (RIGHT.mT, "dimensions 0 and 1 changed places"),
        (RIGHT.flip(1), "flipped along dimension 1"),
        (RIGHT.flip(0, 1), "flipped along dimensions 0, 1"),
        (RIGHT - RIGHT.mean(0), "the same along dimension 0: a term with the mean"),
        (RIGHT + 1, "the same along dimension 0"),
        (ONE_WRONG, "right but for 1 of 16 elements"),
        (RIGHT * (1 + 5e-5 * normal(4, 4, seed=1).sign()), "nearly right"),
        (RIGHT.log(), "elements are nan or infinite"),
        (normal(4, 4, seed=3), ""),
    ],
)
def test_relation(found: torch.Tensor, told: str) -> None:
    diagnosis = Wrong(found.double(), RIGHT, sizes={7, 4, 1}).diagnosis
    assert (told in diagnosis) if told else not diagnosis


def test_conjugate() -> None:
    assert "conjugate" in Wrong(COMPLEX.conj(), COMPLEX).diagnosis


def test_swapped() -> None:
    wrong = Wrong(normal(4, 4, seed=5), RIGHT, others={"weight": RIGHT})
    assert "what backward returns for weight" in wrong.diagnosis


def test_not_due() -> None:
    assert "has to be zero" in Wrong(RIGHT, torch.zeros_like(RIGHT)).diagnosis


def test_one_number_tells_nothing() -> None:
    assert not Wrong(torch.tensor([2.0]), torch.tensor([1.0])).diagnosis


class ScaledBias(Linear):
    backward = linear_backward(bias=lambda g, x, weight: g.sum(0) * 3)


def test_the_report_tells_it() -> None:
    inputs = normal(3, 4), normal(5, 4, seed=1), normal(5, seed=2)
    (row,) = check(ScaledBias, *inputs, only=["gradient"]).failures
    assert row.subject == "bias"
    assert row.cause.startswith("It is 3 times the right one")
