"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from typing_extensions import override

from training.config import Config
from training.momentum import MomentumOptimizer
from training.muon import Muon


class MovingAverageSGD(MomentumOptimizer):
    """SGD whose momentum is an exponential moving average of the gradients.

    With gradient g, learning rate α, momentum μ and weight decay λ, a step is

        m ← μ m + (1 − μ) g,    m₀ = 0
        θ ← θ − α (m + λ θ)

    ``torch.optim.SGD`` has m ← μ m + g instead, a step 1/(1 − μ) times as long once m has
    settled, and adds λ θ to g, so that the decay passes through the momentum too.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        """Set the defaults of the parameter groups.

        Args:
            params: Parameters, or groups of them as for any optimizer.
            lr: Learning rate α, not negative.
            momentum: Share μ of the old average in the new one, in [0, 1).
            weight_decay: Decay λ, not negative.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @override
    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "average" not in state:
            state["average"] = torch.zeros_like(parameter)
        average = state["average"].lerp_(gradient, 1 - group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(average, alpha=group["lr"])


def decayed(model: Module) -> list[Parameter]:
    """Return the parameters that weight decay applies to: matrices and convolution kernels.

    Biases and the scale and shift of batch norm, all of one axis, do not overfit and are left
    free.
    """
    return [p for p in model.parameters() if p.requires_grad and p.ndim > 1]


def weight_decay_loss(model: Module, weight_decay: float) -> Tensor:
    """Return the penalty ``weight_decay/2 |θ|²`` over the decayed parameters, a scalar."""
    with torch.no_grad():
        squares = torch.stack([parameter.square().sum() for parameter in decayed(model)])
        return weight_decay / 2 * squares.sum()


def make_optimizer(config: Config, model: Module) -> Optimizer:
    """Return the optimizer of ``config`` over the parameters of ``model`` that are trained."""
    free = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed(model), "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0, "lr": config.bias_lr or config.lr},
    ]
    return _OPTIMIZERS[config.optimizer](groups, config)


_OPTIMIZERS: dict[str, Callable[[Any, Config], Optimizer]] = {
    "sgd": lambda groups, c: SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=c.nesterov),
    "sgd-moving-average": lambda groups, c: MovingAverageSGD(groups, c.lr, c.momentum),
    "adam": lambda groups, c: Adam(groups, c.lr, (c.momentum, 0.999), amsgrad=c.amsgrad),
    "adamw": lambda groups, c: AdamW(groups, c.lr, (c.momentum, 0.999), amsgrad=c.amsgrad),
    "muon": lambda groups, c: Muon(groups, c.lr, c.momentum),
}


def make_schedule(config: Config, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Return the schedule of ``config``, to be stepped after each of ``steps`` steps."""
    if config.schedule == "one-cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        # momentum stays what --momentum says
        return OneCycleLR(optimizer, highest, steps, cycle_momentum=False)
    shape = _SHAPES[config.schedule]
    warmup = round(config.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shape((step - warmup) / max(1, steps - warmup))

    return LambdaLR(optimizer, factor)


# Factor of the highest learning rate, against the share of the steps after warm-up that are over.
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}
