"""Activations in place: what is saved is what is returned, and what torch refuses is refused."""

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from benchmarks.measure import saved_bytes
from manual_ops import functional

OPS = ["relu", "relu6", "leaky_relu", "elu", "silu", "hardswish", "hardsigmoid"]


@pytest.mark.parametrize("op", OPS)
def test_same_gradients_and_no_more_bytes(op: str) -> None:
    torch.manual_seed(0)
    x = (4 * torch.randn(3, 5, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def output_of(namespace: object) -> Tensor:
        hidden = x * 1
        output = getattr(namespace, op)(hidden, inplace=True)
        assert output is hidden
        return (output @ weight).square().sum()

    ours, theirs = (
        torch.autograd.grad(output_of(n), (x, weight), create_graph=True)
        for n in (functional, torch_functional)
    )
    torch.testing.assert_close(ours, theirs)
    if op != "hardsigmoid":  # torch's has no second derivative
        second, expected = (torch.autograd.grad(g[0].sum(), weight) for g in (ours, theirs))
        torch.testing.assert_close(second, expected)
    if op != "elu":  # which saves its input, since its derivative cancels in its output
        sizes = [saved_bytes(lambda n=n: output_of(n)) for n in (functional, torch_functional)]
        assert sizes[0] <= sizes[1]


@pytest.mark.parametrize("op", OPS)
def test_leaf_is_refused_untouched(op: str) -> None:
    x = torch.full((3,), -1.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        getattr(functional, op)(x, inplace=True)
    assert (x == -1).all()


def test_value_that_another_layer_saved_is_noticed() -> None:
    x = torch.ones(3, requires_grad=True)
    hidden = x * 2
    saved_elsewhere = hidden.square()
    functional.relu(hidden, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved_elsewhere.sum().backward()


@pytest.mark.parametrize("grad", [True, False])
def test_views_and_no_grad(grad: bool) -> None:
    base = torch.tensor([[-1.0, 2.0], [3.0, -4.0]], requires_grad=grad)
    hidden = base * 1
    functional.relu(hidden[0], inplace=True)
    assert hidden.tolist() == [[0.0, 2.0], [3.0, -4.0]]
    if grad:
        hidden.sum().backward()
        assert base.grad is not None
        assert base.grad.tolist() == [[0.0, 1.0], [1.0, 1.0]]
