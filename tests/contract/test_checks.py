"""The contract: every check of ``manual_ops.check`` on every case of the table."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_ops.check import CHECKS
from manual_ops.check.matrix import FIRST_CASE_ALONE, FIRST_CASES, check_case
from manual_ops.testing.cases import CASES, EMPTY_CASES, OpCase
from tests.harness import first, subject

BESIDE_REFERENCE = ["values against reference", "gradients against reference"]


def _floats(case: OpCase) -> list[Tensor]:
    values = case.sample().values()
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]


def _has_two_alike(case: OpCase) -> bool:
    shapes = [case.sample()[name].shape for name in case.differentiable]
    return len(set(shapes)) < len(shapes)


def _has_images(case: OpCase) -> bool:
    return any(t.dim() == 4 and t.shape[1] > 1 and t[0, 0].numel() > 1 for t in _floats(case))


def _has_function(case: OpCase) -> bool:
    return case.id not in ("dropout-eval", "dropout-keep_all")  # these return their input


def _has_batch(case: OpCase) -> bool:
    """Whether the first dimension of the first input is none that the op reads as another."""
    without = {
        "vector": ("linear", "linear_relu", "layer_norm"),
        "unbatched": (
            *("nll_loss", "cross_entropy", "linear_cross_entropy"),
            *("conv1d", "conv2d", "conv2d_relu", "max_pool2d", "avg_pool2d"),
        ),
        "unbatched_none": ("linear_cross_entropy",),
        "unbatched_weight": ("nll_loss", "cross_entropy"),
        "mask": ("scaled_dot_product_attention",),
    }
    return case.variant != "scalar" and case.op not in without.get(case.variant, ())


# Where a check has nothing to look at, and says so.
APPLIES: dict[str, Callable[[OpCase], Any]] = {
    "same tensor twice": _has_two_alike,
    "channels_last": _has_images,
    "layouts": lambda case: any(tensor.dim() for tensor in _floats(case)),
    "grad_output layouts": lambda case: first(subject(case)(**case.sample())).dim(),
    "gradients returned": _has_function,
    "setup_context": _has_function,
    "empty batch": _has_batch,
}


def _contract() -> Iterator[Any]:
    for case in CASES:
        for name in CHECKS:
            sampled = name in FIRST_CASE_ALONE and name != "compile"
            if name not in case.exempt and (case in FIRST_CASES or not sampled):
                yield pytest.param(case, name, id=f"{case.id}-{name}")


@pytest.mark.parametrize(("case", "name"), list(_contract()))
def test_check(case: OpCase, name: str) -> None:
    report = check_case(case, only=[name])
    report.raise_if_failed()
    applies = APPLIES.get(name, lambda case: True)(case)
    assert {row.verdict for row in report.rows} == {"pass" if applies else "n/a"}, report


@pytest.mark.parametrize("case", EMPTY_CASES, ids=lambda case: case.id)
def test_empty(case: OpCase, device: str) -> None:
    """No samples, no features, no classes, nothing to average."""
    report = check_case(case, only=BESIDE_REFERENCE, device=device)
    report.raise_if_failed()
    assert {row.verdict for row in report.rows} == {"pass"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_on_cuda(case: OpCase) -> None:
    only = ["gradient", "double backward", "forward mode", "layouts", *BESIDE_REFERENCE]
    check_case(case, only=only, device="cuda").raise_if_failed()


@pytest.mark.parametrize(
    "case",
    [c for c in FIRST_CASES if c.op in ("linear", "cross_entropy", "conv2d", "max_pool2d")],
    ids=lambda case: case.id,
)
def test_inductor(case: OpCase) -> None:
    report = check_case(case, only=["compile"], backend="inductor")
    report.raise_if_failed()
    assert [row.verdict for row in report.rows] == ["pass"]
