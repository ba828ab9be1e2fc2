"""What the embedding's settings change about its gradient, and sparse gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from manual_ops import functional, nn

INDICES = torch.tensor([[3, 1, 3], [0, 3, 1]])


def table() -> Tensor:
    return torch.arange(15, dtype=torch.float64).reshape(5, 3).div(10).requires_grad_()


def gradient(f: Any, **settings: Any) -> Tensor:
    weight = table()
    output = f.embedding(INDICES, weight, **settings)
    grad_output = torch.arange(1, 19, dtype=torch.float64).reshape(2, 3, 3)
    return torch.autograd.grad(output, weight, grad_output)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_idx": 3},
        {"padding_idx": -2},
        {"scale_grad_by_freq": True},
        {"scale_grad_by_freq": True, "padding_idx": 1},
    ],
    ids=str,
)
def test_gradient_settings(settings: dict[str, Any]) -> None:
    """The padding row gets none; rows looked up often get the mean instead of the sum."""
    torch.testing.assert_close(
        gradient(functional, **settings), gradient(torch_functional, **settings)
    )


def test_padding_row_stays_zero_if_an_infinite_gradient_reaches_it() -> None:
    weight = table()
    output = functional.embedding(torch.tensor([3, 1]), weight, padding_idx=3)
    (found,) = torch.autograd.grad(output, weight, torch.full((2, 3), torch.inf).double())
    assert found[3].tolist() == [0, 0, 0]
    assert found[1].isinf().all()


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_sparse_gradient(padding_idx: int | None) -> None:
    ours = gradient(functional, sparse=True, padding_idx=padding_idx)
    theirs = gradient(torch_functional, sparse=True, padding_idx=padding_idx)
    assert ours.layout == theirs.layout == torch.sparse_coo
    assert ours.is_coalesced() == theirs.is_coalesced()
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense())
    torch.testing.assert_close(ours._indices(), theirs._indices())


def test_sparse_gradient_trains() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(5, 3, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    embedding(INDICES).square().sum().backward()
    optimizer.step()
    changed = (embedding.weight.detach() != before).any(1)
    assert changed.tolist() == [True, True, False, True, False]


def test_sparse_and_scale_grad_by_freq_is_refused_in_backward() -> None:
    for f in (functional, torch_functional):
        with pytest.raises(RuntimeError, match="scale_grad_by_freq"):
            gradient(f, sparse=True, scale_grad_by_freq=True)


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_max_norm_scales_the_rows_looked_up(norm_type: float) -> None:
    results = []
    for f in (functional, torch_functional):
        weight = table()
        version = weight._version
        output = f.embedding(INDICES, weight, max_norm=0.5, norm_type=norm_type)
        assert weight._version > version  # so that a graph which saved the table notices
        (grad,) = torch.autograd.grad(output.square().sum(), weight)
        results.append((output.detach(), weight.detach(), grad))
    torch.testing.assert_close(*results)
    assert results[0][1][3].norm(norm_type) <= 0.5 + 1e-6
    assert torch.equal(results[0][1][4], table()[4].detach())  # not looked up: left alone
