"""Muon against its formula and against Adam."""

from copy import deepcopy

import pytest
import torch
from torch.nn import Parameter

from training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30), (1, 9)])
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_lengths(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    result = orthogonalise(matrix, steps=5)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    in_its_directions = left.mT @ result @ right.mT
    values = in_its_directions.diagonal()
    torch.testing.assert_close(in_its_directions, values.diag(), rtol=0, atol=1e-10)
    assert ((values > 0.6) & (values < 1.25)).all()


def test_three_steps_are_near_enough():
    sizes = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7], dtype=torch.float64)
    values = orthogonalise((sizes / sizes.norm()).diag()).diagonal()
    assert ((values > 0.68) & (values < 1.21)).all()


def test_zero_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 3, 3)])
def test_matrices_and_kernels_follow_the_formula(shape):
    lr, mu = 0.2, 0.6
    theta = torch.randn(shape, dtype=torch.float64)
    parameter = Parameter(theta.clone())
    optimizer = Muon([parameter], lr=lr, momentum=mu)
    m = torch.zeros_like(theta)
    for _ in range(4):
        gradient = torch.randn_like(theta)
        parameter.grad = gradient.clone()
        optimizer.step()
        m = mu * m + gradient
        step = orthogonalise((gradient + mu * m).flatten(1)).view(shape)
        theta = shape[0] ** 0.5 * theta / theta.norm() - lr * step
        torch.testing.assert_close(parameter.detach(), theta, rtol=1e-12, atol=1e-12)


def test_other_parameters_follow_adam():
    ours, theirs = (Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64)) for _ in range(2))
    optimizers = [Muon([ours], lr=0.05), torch.optim.Adam([theirs], 0.05, (0.9, 0.95))]
    for _ in range(6):
        gradient = torch.randn(5, dtype=torch.float64)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_memory_format_does_not_matter():
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        parameter = Parameter(torch.randn(4, 3, 3, 3).to(memory_format=memory_format))
        optimizer = Muon([parameter])
        for _ in range(3):
            parameter.grad = torch.randn(4, 3, 3, 3).to(memory_format=memory_format)
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results)


def test_zero_weights_are_trained():
    parameter = Parameter(torch.zeros(2, 3))
    parameter.grad = torch.eye(2, 3)
    Muon([parameter], lr=0.5).step()
    torch.testing.assert_close(parameter.detach(), -0.5 * orthogonalise(torch.eye(2, 3)))


def test_parameters_without_gradient_stay():
    parameters = [Parameter(torch.ones(2)), Parameter(torch.ones(2, 2))]
    optimizer = Muon(parameters)
    optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in parameters)


def test_state_survives_a_round_trip():
    def fresh() -> list[Parameter]:
        torch.manual_seed(0)
        return [Parameter(torch.randn(3, 4)), Parameter(torch.randn(3))]

    def train(optimizer: Muon, parameters: list[Parameter], seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    parameters = fresh()
    optimizer = Muon(parameters)
    train(optimizer, parameters, 1)
    copies = [Parameter(p.detach().clone()) for p in parameters]
    copy = Muon(copies)
    copy.load_state_dict(deepcopy(optimizer.state_dict()))
    for pair in ((optimizer, parameters), (copy, copies)):
        train(*pair, 2)
    for parameter, other in zip(parameters, copies, strict=True):
        assert torch.equal(parameter, other)


def test_returns_the_loss_of_the_closure():
    parameter = Parameter(torch.tensor([3.0]))

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert Muon([parameter]).step(closure).item() == 9.0
    assert parameter.item() < 3.0


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"momentum": 1.0}])
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Muon([Parameter(torch.ones(1))], **settings)
