"""torch.func: gradients, per-sample gradients, Jacobians and Hessians."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from manual_ops.testing.cases import CASES, OpCase
from tests.harness import cases_for, first, on_differentiable, run, scalar, subject

PARAMETERS = (
    *("weight", "bias", "running_mean", "running_var", "pos_weight"),
    *("linear_weight", "linear_bias"),
)


def reference(case: OpCase) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    # Of torch.nn's kernels for attention the plain formula alone can be transformed.
    op = sdpa_kernel(SDPBackend.MATH)(case.reference)
    return on_differentiable(case, op, case.sample())


def every(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(tensors)))


@cases_for()
def test_grad(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    found = grad(scalar(function, tensors), every(tensors))(*tensors)
    expected = torch.autograd.grad(scalar(*reference(case))(*tensors), tensors)
    torch.testing.assert_close(found, expected)


@cases_for()
def test_jacobian_by_both_modes(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    argnums = every(tensors)
    expected = jacrev(reference(case)[0], argnums)(*tensors)
    torch.testing.assert_close(jacrev(function, argnums)(*tensors), expected)
    torch.testing.assert_close(jacfwd(function, argnums, randomness="same")(*tensors), expected)


@cases_for("hessian")
def test_hessian(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    argnums = every(tensors)
    # Row by row in reverse: torch.func.hessian of torch.nn's training batch norm is itself wrong.
    expected = torch.autograd.functional.hessian(scalar(*reference(case)), tensors)
    gradient = jacrev(scalar(function, tensors), argnums)
    found = jacfwd(gradient, argnums, randomness="same")(*tensors)  # torch.func.hessian
    torch.testing.assert_close(found, expected)


def stack_samples(
    case: OpCase, *, shared: bool
) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, int | None]]:
    """Three draws of a case: one by one, stacked for vmap, and vmap's ``in_dims``.

    Args:
        case: The case.
        shared: The parameters are those of the first draw for all three, and not stacked.
    """
    samples = [case.sample(seed=seed) for seed in range(3)]
    stacked: dict[str, Tensor] = {}
    in_dims: dict[str, int | None] = {}
    for name, value in samples[0].items():
        if not isinstance(value, Tensor):
            continue
        if shared and name in PARAMETERS:
            stacked[name], in_dims[name] = value, None
            for sample in samples:
                sample[name] = value
        else:
            stacked[name], in_dims[name] = torch.stack([s[name] for s in samples]), 0
    return samples, stacked, in_dims


def on_tensors(case: OpCase, op: Callable[..., Any]) -> Callable[[dict[str, Tensor]], Tensor]:
    """The op as a function of all its tensors; the other arguments are fixed."""
    fixed = {k: v for k, v in case.sample().items() if not isinstance(v, Tensor)}

    def function(tensors: dict[str, Tensor]) -> Tensor:
        if case.random:
            torch.manual_seed(0)
        return first(op(**fixed, **tensors))

    return function


own_and_shared = pytest.mark.parametrize(
    ("case", "shared"),
    [
        pytest.param(case, shared, id=f"{case.id}-{'shared' if shared else 'own'}_parameters")
        for case in CASES
        for shared in (False, True)
        if not (shared and "shared vmap" in case.exempt)
    ],
)


@own_and_shared
def test_vmap(case: OpCase, shared: bool) -> None:
    samples, stacked, in_dims = stack_samples(case, shared=shared)
    found = vmap(on_tensors(case, subject(case)), (in_dims,), randomness="same")(stacked)
    for i, sample in enumerate(samples):
        expected = run(case, case.reference, sample, torch.ones_like)
        torch.testing.assert_close(found[i], expected.outputs["output 0"])
        for name in case.buffers:
            torch.testing.assert_close(stacked[name][i], expected.buffers[f"buffer {name}"])


@cases_for(table=[case for case in CASES if "shared vmap" in case.exempt])
def test_vmap_refuses_to_update_shared_statistics(case: OpCase) -> None:
    """As torch.nn does: one running mean cannot follow several batches at once."""
    samples, stacked, in_dims = stack_samples(case, shared=True)
    before = {name: samples[0][name].clone() for name in case.buffers}
    for op in (case.reference, subject(case)):
        with pytest.raises(RuntimeError):
            vmap(on_tensors(case, op), (in_dims,))(stacked)
        assert all(torch.equal(stacked[name], value) for name, value in before.items())


@own_and_shared
def test_per_sample_gradients(case: OpCase, shared: bool) -> None:
    samples, stacked, in_dims = stack_samples(case, shared=shared)
    function = on_tensors(case, subject(case))

    def value(differentiable: dict[str, Tensor], constant: dict[str, Tensor]) -> Tensor:
        return function(differentiable | constant).square().sum()

    def split(by_name: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        chosen = {name: by_name[name] for name in case.differentiable}
        return chosen, {k: v for k, v in by_name.items() if k not in chosen}

    found = vmap(grad(value), split(in_dims), randomness="same")(*split(stacked))
    for i, sample in enumerate(samples):
        f, tensors = on_differentiable(case, case.reference, sample)
        expected = torch.autograd.grad(f(*tensors).square().sum(), tensors)
        for name, gradient in zip(case.differentiable, expected, strict=True):
            torch.testing.assert_close(found[name][i], gradient)


@cases_for()
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
def test_backward_through_vmap(case: OpCase, frozen: bool) -> None:
    names = case.differentiable[: 1 if frozen else None]
    samples, stacked, _ = stack_samples(case, shared=False)
    # Batched along the last dimension here, so that no formula relies on a leading one.
    stacked = {
        name: tensor.movedim(0, -1).requires_grad_(name in names)
        for name, tensor in stacked.items()
    }
    output = vmap(on_tensors(case, subject(case)), -1, randomness="same")(stacked)
    found = torch.autograd.grad(output.square().sum(), [stacked[name] for name in names])
    for i, sample in enumerate(samples):
        f, tensors = on_differentiable(case, case.reference, sample)
        expected = torch.autograd.grad(f(*tensors).square().sum(), tensors[: len(names)])
        for gradient, one in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient[..., i], one)
