"""Values, gradients and buffers are torch.nn's, in every dtype and memory layout."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_ops.testing.cases import CASES, EMPTY_CASES, OpCase
from tests.harness import (
    STRIDES_BY_KERNEL,
    assert_matches,
    cases_for,
    cast,
    random_like,
    run,
    subject,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Layout = Callable[[Tensor], Tensor]


def transposed(tensor: Tensor) -> Tensor:
    """The same values, with the last two dimensions swapped in memory."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def strided(tensor: Tensor) -> Tensor:
    """The same values, every other element of a larger tensor."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def expanded(tensor: Tensor) -> Tensor:
    """The first value everywhere, at stride 0."""
    return tensor.flatten()[0].expand(tensor.shape)


def expanded_rows(tensor: Tensor) -> Tensor:
    """The first row, or value of a vector, repeated at stride 0."""
    return tensor[:1].expand(tensor.shape) if tensor.dim() else tensor


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def with_layout(arguments: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Lay out the floating-point tensors; those of one stored element only stay as they are."""
    return {
        name: layout(value) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def laid_out(*layouts: Layout) -> Iterator[Any]:
    """Every case under every layout that makes a difference to it."""
    for case in CASES:
        if "input layout" in case.exempt:
            continue
        arguments = case.sample()
        for layout in layouts:
            changed = with_layout(arguments, layout)
            if any(
                isinstance(value, Tensor) and value.stride() != arguments[name].stride()
                for name, value in changed.items()
            ):
                yield pytest.param(case, layout, id=f"{case.id}-{layout.__name__}")


def compare(
    case: OpCase,
    arguments: dict[str, Any],
    cotangent: Callable[[Tensor], Tensor],
    *,
    gradient_strides: bool = True,
) -> None:
    """Run the case by us, by torch.nn, and by torch.nn in float64."""
    ours = run(case, subject(case), arguments, cotangent)
    theirs = run(case, case.reference, arguments, cotangent)
    truth = run(case, case.reference, cast(arguments, torch.float64), cotangent)
    assert_matches(ours, theirs, truth, gradient_strides=gradient_strides)


@cases_for()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(case: OpCase, dtype: torch.dtype, device: str) -> None:
    compare(
        case,
        case.sample(dtype, device),
        lambda output: random_like(output, 1, dtype),
        gradient_strides=case.op not in STRIDES_BY_KERNEL,
    )


@cases_for(table=EMPTY_CASES)
def test_empty_batch(case: OpCase, device: str) -> None:
    compare(case, case.sample(torch.float32, device), lambda output: random_like(output, 1))


@pytest.mark.parametrize(
    ("case", "layout"), list(laid_out(transposed, strided, expanded_rows, channels_last))
)
def test_input_layout(case: OpCase, layout: Layout) -> None:
    compare(
        case,
        with_layout(case.sample(torch.float32), layout),
        lambda output: random_like(output, 1, torch.float32),
        # Gradients keep a memory format. Other strides are torch.nn's implementation detail.
        gradient_strides=layout is channels_last and case.op not in STRIDES_BY_KERNEL,
    )


@cases_for()
@pytest.mark.parametrize("layout", [transposed, strided, expanded, channels_last])
def test_grad_output_layout(case: OpCase, layout: Layout) -> None:
    compare(
        case,
        case.sample(torch.float32),
        lambda output: layout(random_like(output, 1, torch.float32)),
        gradient_strides=False,
    )


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.op == "batch_norm"], ids=lambda case: case.id
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_input_with_float32_statistics(case: OpCase, dtype: torch.dtype) -> None:
    arguments = case.sample(torch.float32)
    arguments["input"] = arguments["input"].to(dtype)
    compare(case, arguments, lambda output: random_like(output, 1, dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@cases_for()
def test_no_hidden_synchronisation(case: OpCase) -> None:
    """Nothing waits for the device, in forward or backward."""
    arguments = case.sample(torch.float32, "cuda")
    run(case, subject(case), arguments, torch.ones_like)  # sets up what is set up but once
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, subject(case), arguments, torch.ones_like)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batch_norm_far_from_zero(device: str) -> None:
    """A mean of 100 deviations: sums that cancel may cost a digit against torch.nn, not more."""
    case = next(case for case in CASES if case.id == "batch_norm-train_no_statistics")
    arguments = case.sample(torch.float32, device)
    arguments["input"] = random_like(torch.empty(16, 3, 8, 8, device=device), 2) + 100
    error = {}
    truth = run(case, case.reference, cast(arguments, torch.float64), lambda o: random_like(o, 1))
    for name, op in (("ours", subject(case)), ("torch.nn", case.reference)):
        found = run(case, op, arguments, lambda o: random_like(o, 1))
        error[name] = [
            (gradient - truth.gradients[argument]).abs().max()
            for argument, gradient in found.gradients.items()
        ]
    for ours, theirs in zip(error["ours"], error["torch.nn"], strict=True):
        assert ours < 10 * theirs


@cases_for("autocast")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(case: OpCase, dtype: torch.dtype) -> None:
    """Output and gradient dtypes under autocast, from inputs already low and not yet low."""
    arguments = case.sample(torch.float32)
    name = case.differentiable[0]
    arguments[name] = arguments[name].to(dtype)

    def autocast(op: Callable[..., Any]) -> Callable[..., Any]:
        return torch.autocast("cpu", torch.bfloat16)(op)

    def cotangent(output: Tensor) -> Tensor:
        return random_like(output, 1, torch.bfloat16)

    ours = run(case, autocast(subject(case)), arguments, cotangent)
    theirs = run(case, autocast(case.reference), arguments, cotangent)
    truth = run(case, case.reference, cast(arguments, torch.float64), cotangent)
    assert_matches(ours, theirs, truth, gradient_strides=case.op not in STRIDES_BY_KERNEL)
