"""What batch norm alone has to keep to: statistics that it updates, inputs in another dtype."""

from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from manual_ops import functional, nn
from manual_ops.testing.cases import CASES, OpCase
from tests.harness import assert_matches, cast, random_like, run, subject

BATCH_NORM = [case for case in CASES if case.op == "batch_norm"]


@pytest.mark.parametrize("case", BATCH_NORM, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_input_with_float32_statistics(case: OpCase, dtype: torch.dtype) -> None:
    arguments = case.sample(torch.float32)
    arguments["input"] = arguments["input"].to(dtype)
    wide = cast(arguments, torch.float64)
    ours, theirs, truth = (
        run(case, op, given, lambda output: random_like(output, 1, dtype))
        for op, given in (
            (subject(case), arguments),
            (case.reference, arguments),
            (case.reference, wide),
        )
    )
    assert_matches(ours, theirs, truth)


def test_far_from_zero(device: str) -> None:
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


@pytest.mark.parametrize(
    "case",
    [case for case in BATCH_NORM if case.buffers and case.arguments.get("training")],
    ids=lambda case: case.id,
)
def test_vmap_refuses_to_update_shared_statistics(case: OpCase) -> None:
    """As torch.nn does: one running mean cannot follow several batches at once."""
    arguments = case.sample()
    batches = torch.stack([arguments.pop("input")] * 3)
    before = {name: arguments[name].clone() for name in case.buffers}
    for op in (case.reference, subject(case)):
        with pytest.raises(RuntimeError):
            vmap(lambda input, op=op: op(input, **arguments))(batches)
        assert all(torch.equal(arguments[name], value) for name, value in before.items())


@pytest.mark.parametrize("transform", ["grad", "jvp", "grad of grad", "vmap of grad"])
def test_transforms_move_statistics_that_they_do_not_differentiate_by(transform: str) -> None:
    """Those that the function captures, and those of an outer vmap."""
    x, many = random_like(torch.empty(4, 3), 0), random_like(torch.empty(2, 4, 3), 1)

    def outcome(f: ModuleType) -> tuple[Tensor, ...]:
        shape = (2, 3) if transform == "vmap of grad" else (3,)
        statistics = torch.zeros(shape), torch.ones(shape)

        def loss(x: Tensor, *running: Tensor) -> Tensor:
            return f.batch_norm(x, *(running or statistics), training=True).pow(3).sum()

        if transform == "grad":
            found = grad(loss)(x)
        elif transform == "jvp":
            _, found = jvp(loss, (x,), (x.cos(),))
        elif transform == "grad of grad":
            found = grad(lambda x: grad(loss)(x).square().sum())(x)
        else:
            found = vmap(lambda x, *running: grad(lambda x: loss(x, *running))(x))(
                many, *statistics
            )
        assert not torch.equal(statistics[0], torch.zeros(shape))
        return found, *statistics

    torch.testing.assert_close(outcome(functional), outcome(torch.nn.functional))


def test_statistics_that_an_evaluation_saved_are_not_moved_unnoticed() -> None:
    """Torch.nn's gradient is then wrong without a word."""
    norm = nn.BatchNorm1d(3)
    x = torch.ones(5, 3, requires_grad=True)
    output = norm.eval()(x)
    norm.train()(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_statistics_of_more_than_one_dtype_are_moved() -> None:
    """Where ATen's kernel does not take them: torch.nn's raises."""
    x = random_like(torch.empty(6, 3), 0)
    wide = [torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    exact = [t.clone() for t in wide]
    functional.batch_norm(x, *wide, training=True, momentum=0.3)
    torch.nn.functional.batch_norm(x.double(), *exact, training=True, momentum=0.3)
    torch.testing.assert_close(wide, exact, rtol=1e-6, atol=1e-6)
