"""Cross-entropy of probabilities x in [0, 1] and targets t.

Index convention: ``i`` runs over all elements, w[i] is an optional weight.

Forward:   l[i] = -w[i] (t[i] log x[i] + (1 - t[i]) log(1 - x[i])), logarithms cut off at -100
Backward:  dL/dx[i] = -r[i] w[i] (t[i] / x[i] - (1 - t[i]) / (1 - x[i]))
                    = r[i] w[i] (x[i] - t[i]) / (x[i] (1 - x[i]))
           dL/dt[i] = r[i] w[i] (log(1 - x[i]) - log x[i])
Tangent:   l'[i] = dl[i]/dx[i] x'[i] + dl[i]/dt[i] t'[i], reduced like l

The output y of l, and r of dL/dy, follow from the reduction as in _loss.py. The denominator is
kept at 1e-12 or more, as torch does, so that x = 0 and x = 1 stay finite.
Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 4.90.
"""

import torch
from torch import Tensor

from .._overridable import overridable
from .._precision import accumulate_wide, full_precision
from ._loss import bind_pointwise_loss, check_constant_weights, resolve_reduction


@accumulate_wide
def _input_slope(factor: Tensor, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    slope = (input - target) / (input * (1 - input)).clamp(min=1e-12)
    return slope * (factor if weight is None else factor * weight)


@accumulate_wide
def _target_slope(factor: Tensor, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    slope = torch.log1p(-input).clamp(min=-100) - torch.log(input).clamp(min=-100)
    return slope * (factor if weight is None else factor * weight)


def _forward(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    return torch.nn.functional.binary_cross_entropy(input, target, weight, reduction=reduction)


_binary_cross_entropy = bind_pointwise_loss(
    _forward,
    _input_slope,
    _target_slope,
    "input and target of one shape, input in [0, 1], weight of a shape that broadcasts to it",
)


@overridable(torch.nn.functional.binary_cross_entropy)
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of probabilities; drop-in for torch's ``binary_cross_entropy``.

    Prefer :func:`binary_cross_entropy_with_logits`, which cannot saturate.

    Args:
        input: Probabilities in [0, 1], any shape.
        target: Same shape, usually in [0, 1].
        weight: Factor for each element, of a shape that broadcasts to ``target``.
        size_average: Deprecated, see ``reduction``.
        reduce: Deprecated, see ``reduction``.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        A scalar, or the shape of ``input`` for ``none``; float32 for half inputs under autocast.

    Raises:
        ValueError: ``target`` of another shape than ``input``; unknown ``reduction``.
        RuntimeError: A value outside [0, 1]; ``weight`` requires grad; CUDA autocast, where
            probabilities of half precision are unsafe, as in torch.
    """
    reduction = resolve_reduction(reduction, size_average, reduce)
    if target.size() != input.size():
        raise ValueError(
            f"binary_cross_entropy: expected a target of the size of the input, "
            f"{tuple(input.shape)}, got {tuple(target.shape)}"
        )
    if input.is_cuda and torch.is_autocast_enabled("cuda"):
        raise RuntimeError(
            "binary_cross_entropy and BCELoss are unsafe to autocast: use "
            "binary_cross_entropy_with_logits or BCEWithLogitsLoss on the logits instead"
        )
    check_constant_weights("binary_cross_entropy", weight=weight)
    input_, target_, weight_ = full_precision(input, target, weight)
    if weight_ is not None and weight_.shape != target.shape:
        try:
            weight_ = weight_.expand(torch.broadcast_shapes(target.shape, weight_.shape))
        except RuntimeError as error:
            raise RuntimeError(
                f"binary_cross_entropy: expected a weight that broadcasts with target "
                f"{tuple(target.shape)}, got {tuple(weight_.shape)}"
            ) from error
    loss: Tensor = _binary_cross_entropy(input_, target_, reduction, weight_)
    return loss
