"""Binary cross-entropy of logits x and targets t, sigmoid included.

Index convention: ``i`` runs over all elements; w[i] optional weight, p[i] optional weight of
positive examples; s = sigmoid.

Forward:   l[i] = -w[i] (p[i] t[i] log s(x[i]) + (1 - t[i]) log s(-x[i]))
Backward:  dL/dx[i] = r[i] w[i] ((1 - t[i]) s(x[i]) - p[i] t[i] s(-x[i]))
           dL/dt[i] = r[i] w[i] (log s(-x[i]) - p[i] log s(x[i]))
Tangent:   l'[i] = dl[i]/dx[i] x'[i] + dl[i]/dt[i] t'[i], reduced like l

With w = p = 1 the gradients are r[i] (s(x[i]) - t[i]) and -r[i] x[i]. The output y of l, and r of
dL/dy, follow from the reduction as in _loss.py.
From d log s(x)/dx = s(-x) and 1 - s(x) = s(-x). log s never overflows: it is
min(x, 0) - log(1 + exp(-|x|)).
Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 4.91.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._overridable import overridable
from .._precision import accumulate_wide, full_precision
from ._loss import bind_pointwise_loss, check_constant_weights, resolve_reduction


@accumulate_wide
def _input_slope(
    factor: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    if pos_weight is None:
        slope = torch.sigmoid(input) - target
    else:
        slope = (1 - target) * torch.sigmoid(input) - pos_weight * target * torch.sigmoid(-input)
    return slope * (factor if weight is None else factor * weight)


@accumulate_wide
def _target_slope(
    factor: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    slope = -input if pos_weight is None else logsigmoid(-input) - pos_weight * logsigmoid(input)
    return slope * (factor if weight is None else factor * weight)


def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(
        input, target, weight, reduction=reduction, pos_weight=pos_weight
    )


_with_logits = bind_pointwise_loss(
    _forward,
    _input_slope,
    _target_slope,
    "input and target of one shape, weight and pos_weight of shapes that broadcast to it",
)


@overridable(torch.nn.functional.binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Sigmoid and cross-entropy in one; drop-in for torch's function of the same name.

    Args:
        input: Logits, any shape and size of value.
        target: Same shape, usually in [0, 1].
        weight: Factor for each element, of a shape that broadcasts to ``input``.
        size_average: Deprecated, see ``reduction``.
        reduce: Deprecated, see ``reduction``.
        reduction: ``none``, ``mean`` or ``sum``.
        pos_weight: Factor for the positive part, of a shape that broadcasts to ``input``.

    Returns:
        A scalar, or the shape of ``input`` for ``none``; float32 for half inputs under autocast.

    Raises:
        ValueError: ``target`` of another shape than ``input``; unknown ``reduction``.
        RuntimeError: ``weight`` or ``pos_weight`` requires grad.
    """
    reduction = resolve_reduction(reduction, size_average, reduce)
    if target.size() != input.size():
        raise ValueError(
            f"binary_cross_entropy_with_logits: expected a target of the size of the input, "
            f"{tuple(input.shape)}, got {tuple(target.shape)}"
        )
    check_constant_weights("binary_cross_entropy_with_logits", weight=weight, pos_weight=pos_weight)
    input_, target_, weight_, pos_ = full_precision(input, target, weight, pos_weight)
    loss: Tensor = _with_logits(input_, target_, reduction, weight_, pos_)
    return loss
