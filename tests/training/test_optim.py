"""Optimizers against their formulas, parameter groups, and schedules."""

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from training.config import Config
from training.muon import Muon
from training.optim import (
    MovingAverageSGD,
    make_optimizer,
    make_schedule,
    weight_decay_loss,
)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


class TestMovingAverageSGD:
    def test_follows_the_formula(self):
        lr, mu, decay = 0.1, 0.8, 0.05
        theta = torch.randn(3, 2, dtype=torch.float64)
        parameter = Parameter(theta.clone())
        optimizer = MovingAverageSGD([parameter], lr=lr, momentum=mu, weight_decay=decay)
        average = torch.zeros_like(theta)
        for _ in range(5):
            gradient = torch.randn_like(theta)
            parameter.grad = gradient.clone()
            optimizer.step()
            average = mu * average + (1 - mu) * gradient
            theta = theta - lr * (average + decay * theta)
            torch.testing.assert_close(parameter.detach(), theta, rtol=1e-14, atol=1e-14)

    def test_without_momentum_and_decay_it_is_plain_sgd(self):
        parameters = [Parameter(torch.ones(3)) for _ in range(2)]
        ours = MovingAverageSGD(parameters[:1], lr=0.1, momentum=0.0)
        theirs = torch.optim.SGD(parameters[1:], lr=0.1)
        for scale in (1.0, -2.0, 0.5):
            for parameter in parameters:
                parameter.grad = scale * torch.arange(3.0)
            ours.step()
            theirs.step()
        torch.testing.assert_close(*parameters)

    def test_differs_from_torchs_momentum_by_the_factor_of_the_average(self):
        """m of torch.optim.SGD, times (1 - mu), is ours: so is the step."""
        parameters = [Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
        ours = MovingAverageSGD(parameters[:1], lr=0.1, momentum=0.9)
        theirs = torch.optim.SGD(parameters[1:], lr=0.1 * (1 - 0.9), momentum=0.9)
        for scale in (1.0, -2.0, 0.5):
            for parameter in parameters:
                parameter.grad = scale * torch.arange(3.0, dtype=torch.float64)
            ours.step()
            theirs.step()
        torch.testing.assert_close(*parameters)

    def test_leaves_parameters_without_gradient(self):
        parameter = Parameter(torch.ones(2))
        MovingAverageSGD([parameter], weight_decay=0.5).step()
        assert torch.equal(parameter, torch.ones(2))

    def test_returns_the_loss_of_the_closure(self):
        parameter = Parameter(torch.tensor([3.0]))
        optimizer = MovingAverageSGD([parameter], lr=0.5, momentum=0.0)

        def closure():
            optimizer.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == 9.0
        assert parameter.item() == 0.0

    def test_state_survives_a_round_trip(self):
        parameter = Parameter(torch.ones(2))
        optimizer = MovingAverageSGD([parameter])
        parameter.grad = torch.ones(2)
        optimizer.step()
        other = MovingAverageSGD([Parameter(torch.ones(2))])
        other.load_state_dict(optimizer.state_dict())
        average = other.state_dict()["state"][0]["average"]
        torch.testing.assert_close(average, torch.full((2,), 0.1))

    @pytest.mark.parametrize("settings", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}])
    def test_refuses_settings_out_of_range(self, settings):
        with pytest.raises(ValueError, match=next(iter(settings))):
            MovingAverageSGD([Parameter(torch.ones(1))], **settings)


class TestMakeOptimizer:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("sgd", torch.optim.SGD),
            ("sgd-moving-average", MovingAverageSGD),
            ("adam", torch.optim.Adam),
            ("adamw", torch.optim.AdamW),
            ("muon", Muon),
        ],
    )
    def test_decays_weights_alone_and_covers_every_parameter(self, model, name, kind):
        decay = 0.0 if name == "muon" else 0.01
        optimizer = make_optimizer(Config(optimizer=name, lr=0.3, weight_decay=decay), model)
        assert type(optimizer) is kind
        decayed, free = optimizer.param_groups
        assert (decayed["weight_decay"], free["weight_decay"]) == (decay, 0.0)
        assert decayed["lr"] == free["lr"] == 0.3
        assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
        assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))

    def test_frozen_parameters_are_left_out(self, model):
        model[0].weight.requires_grad_(False)
        model[1].bias.requires_grad_(False)
        decayed, free = make_optimizer(Config(), model).param_groups
        assert {id(p) for p in decayed["params"]} == {id(model[3].weight)}
        assert {id(p) for p in free["params"]} == {
            id(p) for p in (model[0].bias, model[1].weight, model[3].bias)
        }

    def test_biases_may_have_a_rate_of_their_own(self, model):
        decayed, free = make_optimizer(Config(lr=0.3, bias_lr=2.0), model).param_groups
        assert (decayed["lr"], free["lr"]) == (0.3, 2.0)

    def test_settings_reach_the_optimizer(self, model):
        sgd = make_optimizer(Config(optimizer="sgd", momentum=0.7, nesterov=True), model)
        assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, True)
        average = make_optimizer(Config(optimizer="sgd-moving-average", momentum=0.7), model)
        assert average.defaults["momentum"] == 0.7
        for name in ("adam", "adamw"):
            adam = make_optimizer(Config(optimizer=name, momentum=0.8, amsgrad=True), model)
            assert (adam.defaults["betas"], adam.defaults["amsgrad"]) == ((0.8, 0.999), True)
        assert make_optimizer(Config(optimizer="muon", momentum=0.7), model).defaults == {
            "lr": 0.001, "momentum": 0.7,
        }  # fmt: skip


def test_weight_decay_loss_is_half_lambda_times_the_squared_norm(model):
    squares = model[0].weight.square().sum() + model[3].weight.square().sum()
    torch.testing.assert_close(weight_decay_loss(model, 0.3), 0.15 * squares.detach())


class TestSchedules:
    def rates(
        self, model: nn.Module, schedule: str, steps: int, warmup: float = 0.0
    ) -> list[float]:
        config = Config(optimizer="sgd", lr=0.5, schedule=schedule, warmup=warmup)
        optimizer = make_optimizer(config, model)
        scheduler = make_schedule(config, optimizer, steps)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["momentum"] == 0.9
        return rates

    def test_constant(self, model):
        assert self.rates(model, "constant", 10) == [0.5] * 10

    def test_cosine_falls_from_the_rate_to_nearly_zero(self, model):
        rates = self.rates(model, "cosine", 100)
        assert rates[0] == 0.5
        assert rates[50] == pytest.approx(0.25)
        assert rates[-1] < 0.001
        assert rates == sorted(rates, reverse=True)

    def test_linear_falls_by_equal_steps(self, model):
        rates = self.rates(model, "linear", 100)
        assert rates == pytest.approx([0.5 * (1 - step / 100) for step in range(100)])

    @pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
    def test_warm_up_rises_by_equal_steps_to_the_schedule(self, model, schedule):
        rates = self.rates(model, schedule, 100, warmup=0.2)
        assert rates[:20] == pytest.approx([0.5 * (step + 1) / 21 for step in range(20)])
        assert rates[20:] == pytest.approx(self.rates(model, schedule, 80))

    @pytest.mark.parametrize("schedule", ["linear", "one-cycle"])
    def test_every_rate_follows_the_schedule(self, model, schedule):
        config = Config(optimizer="sgd", lr=0.5, bias_lr=2.0, schedule=schedule)
        optimizer = make_optimizer(config, model)
        scheduler = make_schedule(config, optimizer, 20)
        for _ in range(19):
            weights, biases = optimizer.param_groups
            assert biases["lr"] == pytest.approx(4 * weights["lr"])
            optimizer.step()
            scheduler.step()

    def test_one_cycle_rises_to_the_rate_and_falls_to_nearly_zero(self, model):
        rates = self.rates(model, "one-cycle", 100)
        peak = rates.index(max(rates))
        assert max(rates) == pytest.approx(0.5)
        assert rates[0] < 0.05
        assert rates[-1] < 0.001
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)

    @pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "one-cycle"])
    def test_a_run_of_one_step(self, model, schedule):
        assert 0 < self.rates(model, schedule, 1)[0] <= 0.5
