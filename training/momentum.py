"""What the optimizers written here share."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


class MomentumOptimizer(Optimizer):
    """An optimizer with a momentum that moves each parameter by its own gradient."""

    def __init__(
        self, params: Iterable[Parameter] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        """Set the defaults of the parameter groups.

        Args:
            params: Parameters, or groups of them as for any optimizer.
            defaults: Settings by name, ``lr`` and ``momentum`` among them.

        Raises:
            ValueError: A setting is out of range.
        """
        for name, value in defaults.items():
            if name == "momentum" and not 0 <= value < 1:
                raise ValueError(f"momentum must lie in [0, 1), got {value}")
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        super().__init__(params, defaults)

    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Take the step of one parameter, in place.

        Args:
            parameter: The parameter; what is kept for it is in ``self.state[parameter]``.
            gradient: Its gradient.
            group: The settings of its group.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step along the gradients in ``.grad``; parameters without one stay.

        Args:
            closure: Recomputes and returns the loss, with gradients.

        Returns:
            What ``closure`` returned, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, group)
        return loss
