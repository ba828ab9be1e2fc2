"""Muon, for convolutional networks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import override

from training.momentum import MomentumOptimizer


class Muon(MomentumOptimizer):
    """Orthogonal steps of matrices and convolution kernels, and Adam's of everything else.

    With gradient g, learning rate α and momentum μ, a step of a matrix of n rows, as which a
    kernel of n output channels is taken, is

        m ← μ m + g
        θ ← √n θ/|θ| − α orthogonalise(g + μ m)

    Its length is kept at √n, that of n orthonormal rows: batch norm takes the length away again,
    and α alone says how fast the rows turn. ``torch.optim.Muon`` takes matrices alone, and lets
    them grow. Parameters of one axis move by Adam's rule with β₁ = 0.9 and β₂ = 0.95.

    Reference:
        Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024. For
        convolutions, and with lengths kept, in Jordan's airbench94_muon.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.2,
        momentum: float = 0.6,
    ) -> None:
        """Set the defaults of the parameter groups.

        Args:
            params: Parameters, or groups of them as for any optimizer.
            lr: Learning rate α, not negative.
            momentum: Share μ of the old momentum in the new one, in [0, 1).

        Raises:
            ValueError: A setting is out of range.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @override
    def move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if parameter.ndim > 1:
            _turn(parameter, gradient, state, group["lr"], group["momentum"])
        else:
            _adam(parameter, gradient, state, group["lr"])


def _turn(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], lr: float, momentum: float
) -> None:
    """Take Muon's step of a matrix or kernel."""
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    average = state["momentum"].mul_(momentum).add_(gradient)
    direction = orthogonalise(gradient.add(average, alpha=momentum).flatten(1))
    parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-7))
    parameter.sub_(direction.view_as(parameter), alpha=lr)


def _adam(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> None:
    """Take Adam's step, θ ← θ − α m/(√v + ε) of unbiased averages m of g and v of g²."""
    if not state:
        state |= {"step": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
    state["step"] += 1
    m = state["m"].lerp_(gradient, 1 - betas[0]) / (1 - betas[0] ** state["step"])
    v = state["v"].lerp_(gradient.square(), 1 - betas[1]) / (1 - betas[1] ** state["step"])
    parameter.addcdiv_(m, v.sqrt_().add_(1e-8), value=-lr)


def orthogonalise(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return nearly the closest matrix whose singular values are all 1.

    Each step maps every singular value s, first scaled to at most 1, to a s + b s³ + c s⁵: an odd
    polynomial acts on the singular values alone. Its slope at 0 is chosen so steep that three
    steps take every one from 0.02 to 1 to between 0.68 and 1.21, near enough (Newton-Schulz).

    Args:
        matrix: ``(M, N)``, floating point.
        steps: Number of steps.

    Returns:
        ``(M, N)``, of the same dtype.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
