"""torch.compile without graph breaks: forward, backward, and inside torch.func transforms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from manual_ops.testing.cases import OpCase
from tests.harness import FIRST_CASES, cases_for, on_differentiable, random_like, scalar, subject

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# Arguments whose first dimension is the batch.
PER_SAMPLE = ("input", "target", "query", "key", "value")


def compiled(function: Callable, backend: str = "aot_eager") -> Callable:
    return torch.compile(function, fullgraph=True, backend=backend)


def value_and_gradients(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    output = function(*tensors)
    return (output, *torch.autograd.grad(output, tensors, random_like(output, 1)))


def assert_compiles(case: OpCase, backend: str) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample(), seed=False)
    reference, _ = on_differentiable(case, case.reference, case.sample(), seed=False)
    expected = value_and_gradients(reference, tensors)
    torch.testing.assert_close(value_and_gradients(compiled(function, backend), tensors), expected)


@cases_for()
def test_forward_and_backward(case: OpCase) -> None:
    assert_compiles(case, "aot_eager")


@cases_for(table=FIRST_CASES)
def test_batch_size_may_change(case: OpCase) -> None:
    """The last batch of an epoch is smaller: it is compiled for a batch of any size."""
    compiled_op = compiled(subject(case))
    arguments = case.sample()
    doubled = {
        name: torch.cat([value, value]) if name in PER_SAMPLE else value
        for name, value in arguments.items()
    }
    for sampled in (arguments, doubled):
        function, tensors = on_differentiable(case, compiled_op, sampled, seed=False)
        reference, _ = on_differentiable(case, case.reference, sampled, seed=False)
        expected = value_and_gradients(reference, tensors)
        torch.testing.assert_close(value_and_gradients(function, tensors), expected)


@cases_for(table=FIRST_CASES[:1])
def test_double_backward_through_compiled_code_is_refused(case: OpCase) -> None:
    """PyTorch's own limit, for every module: an error, never a wrong number."""
    function, tensors = on_differentiable(case, compiled(subject(case)), case.sample())
    output = function(*tensors)
    gradient = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient[0].sum().backward()


@pytest.mark.parametrize(
    "case",
    [c for c in FIRST_CASES if c.op in ("linear", "cross_entropy", "conv2d", "max_pool2d")],
    ids=lambda case: case.id,
)
def test_inductor(case: OpCase) -> None:
    assert_compiles(case, "inductor")


@cases_for(table=FIRST_CASES)
def test_compiled_grad(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample(), seed=False)
    value = scalar(function, tensors)
    torch.manual_seed(0)
    expected = grad(value, tuple(range(len(tensors))))(*tensors)
    torch.manual_seed(0)
    found = compiled(grad(value, tuple(range(len(tensors)))))(*tensors)
    torch.testing.assert_close(found, expected)


@cases_for(table=FIRST_CASES)
def test_compiled_jvp(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample(), seed=False)
    tangents = tuple(random_like(tensor, i) for i, tensor in enumerate(tensors))

    def tangent(*args: Tensor) -> Tensor:
        return jvp(function, args, tangents)[1]

    torch.manual_seed(0)
    expected = tangent(*tensors)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(tangent)(*tensors), expected)


@cases_for(table=FIRST_CASES)
def test_compiled_per_sample_gradients(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample(), seed=False)
    stacked = tuple(torch.stack([t, t + 0.01, t - 0.01]).detach() for t in tensors)
    value = scalar(function, tensors)
    per_sample = vmap(grad(value, tuple(range(len(tensors)))), randomness="same")
    torch.manual_seed(0)
    expected = per_sample(*stacked)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(per_sample)(*stacked), expected)


@cases_for(table=FIRST_CASES)
def test_compiled_vmap(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample(), seed=False)
    stacked = tuple(torch.stack([t, t + 0.01, t - 0.01]).detach().requires_grad_() for t in tensors)
    batched = vmap(function, randomness="same")
    torch.manual_seed(0)
    expected = batched(*stacked)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(batched)(*stacked), expected)
