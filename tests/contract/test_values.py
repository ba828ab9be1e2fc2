"""Values, gradients and buffers are torch.nn's, in every dtype and memory layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cases import EMPTY_CASES, OpCase
from tests.harness import assert_matches, cases_for, cast, random_like, run, subject

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compare(
    case: OpCase,
    arguments: dict,
    cotangent: Callable[[Tensor], Tensor],
    *,
    strides: bool = True,
) -> None:
    """Run the case by us, by torch.nn, and by torch.nn in float64."""
    ours = run(case, subject(case), arguments, cotangent)
    theirs = run(case, case.reference, arguments, cotangent)
    truth = run(case, case.reference, cast(arguments, torch.float64), cotangent)
    assert_matches(ours, theirs, truth, strides=strides)


@cases_for()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(case: OpCase, dtype: torch.dtype, device: str) -> None:
    compare(case, case.sample(dtype, device), lambda output: random_like(output, 1, dtype))


@cases_for(table=EMPTY_CASES)
def test_empty_batch(case: OpCase, device: str) -> None:
    compare(case, case.sample(torch.float32, device), lambda output: random_like(output, 1))
