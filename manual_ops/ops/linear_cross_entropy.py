"""Softmax cross-entropy of an affine map, without ever holding the logits.

Index convention: ``n`` samples, ``i`` features, ``c`` the C classes. x input, W and b weight and
bias of the affine map, z its output, the logits; t class indices; w, e, a[n], m[n, c], p and l[n]
as in ``cross_entropy``, D the sum of all a[n].

Forward:   z[n, c]     = sum_i x[n, i] W[c, i] + b[c]
           l[n]        = -sum_c m[n, c] log p[n, c],  p = softmax(z)
           y           = l (reduction none), sum_n l[n] (sum) or (sum_n l[n]) / D (mean)
Backward:  s[n, c]     = r[n] (p[n, c] sum_k m[n, k] - m[n, c])
           r[n]        = dL/dy[n] (none), dL/dy (sum) or dL/dy / D (mean)
           dL/dx[n, i] = sum_c s[n, c] W[c, i]
           dL/dW[c, i] = sum_n s[n, c] x[n, i]
           dL/db[c]    = sum_n s[n, c]
Tangent:   l'[n]       = sum_c (p[n, c] sum_k m[n, k] - m[n, c]) z'[n, c],  reduced like l
           z'          = x' W^T + x W'^T + b'

Derivation: s = dL/dz is the gradient of cross-entropy, and the other three are those of the affine
map. No sum but that over c within one row needs the logits, so a chunk of rows after another is
enough: memory for a chunk of logits instead of all.

Where y is a scalar, r[n] is one number for all n, and the gradients up to that factor are
summed in forward, while the logits of a chunk are at hand; backward scales them, in place if the
graph is not kept. That saves the fourth product of matrices, which computing the logits again
would cost. They are numbers without a history, good for a first derivative alone: wherever more is
asked for (double backward, forward mode, torch.func, reduction none), the formulas above are
evaluated from x, W and b, which are saved as well. So they are where the gradients are larger than
the logits, and in half precision, where what is too small before the loss is scaled would be lost.
Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models (2024), section 4;
gradients in forward: Hsu et al., Liger Kernel (2024), section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._blocks import block_length
from .._modes import may_overwrite
from .._overridable import overridable
from .._precision import autocasts, lower_precision, widen
from ._loss import check_constant_weights, resolve_reduction
from .cross_entropy import common_slope, cross_entropy, index_losses, index_slope
from .linear import linear
from .nll_loss import common_factor, divisor_of_mean, is_counted, sample_factors

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

# Logits in a chunk where the affine map is small: enough for efficient products of matrices.
_CPU_CHUNK, _DEVICE_CHUNK = 2**22, 2**26


class _LinearCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        smoothing: float,
        rows: int,
        summed: tuple[bool, bool, bool],
    ) -> Any:
        """Return L, and the gradients of sum_n l[n] by those of the first three in ``summed``."""
        losses, gradients = [], _Gradients(linear_weight, summed)
        inplace = any(summed) and not torch.compiler.is_compiling()
        class_weight = None if weight is None else widen(weight)
        for chunk in _chunks(input, rows):
            x, t = input[chunk], target[chunk]
            logits = _logits(x, linear_weight, linear_bias)
            log_p = _by_rows(torch.log_softmax, logits, inplace=inplace)
            losses.append(index_losses(log_p, t, class_weight, ignore_index, smoothing))
            if any(summed):
                factors = sample_factors(log_p.new_ones(()), t, weight, ignore_index, "sum")
                p = log_p.exp_()
                gradients.add(index_slope(p, 1, factors, weight, smoothing, inplace=True), x)
                del p
            del logits, log_p  # or they would be held while the next chunk is computed
        loss = _joined(losses)
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            loss = loss / divisor_of_mean(target, weight, ignore_index)
        found = [gradient for gradient in gradients.totals() if gradient is not None]
        return (loss, *found) if found else loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ignore_index, reduction, smoothing, ctx.rows, ctx.summed = inputs
        ctx.settings = ignore_index, reduction, smoothing
        gradients = ()
        if any(ctx.summed):
            _, *gradients = output
            ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *gradients)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * 3
        if grad_output is not None:
            first_order = torch.compiler.is_compiling() or may_overwrite(grad_output)
            route = _scaled if first_order and any(ctx.summed) else _recomputed
            gradients = route(ctx, grad_output, ctx.saved_tensors)
        return *gradients, *(None for _ in range(7))

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        linear_weight_tangent: Tensor | None,
        linear_bias_tangent: Tensor | None,
        *_: None,
    ) -> Any:
        input, linear_weight, linear_bias, target, weight = ctx.saved_tensors
        ignore_index, reduction, smoothing = ctx.settings
        one = widen(input).new_ones(())
        factors = sample_factors(one, target, weight, ignore_index, reduction)
        tangents = []
        for chunk in _chunks(input, ctx.rows):
            p = torch.softmax(_logits(input[chunk], linear_weight, linear_bias), 1)
            parts = [factor[chunk] for factor in factors]
            slope = index_slope(p, 1, parts, weight, smoothing, inplace=False)
            logits_tangent: Any = 0
            if input_tangent is not None:
                logits_tangent = _logits(input_tangent[chunk], linear_weight, linear_bias_tangent)
            elif linear_bias_tangent is not None:
                logits_tangent = linear_bias_tangent
            if linear_weight_tangent is not None:
                logits_tangent = logits_tangent + _logits(input[chunk], linear_weight_tangent)
            tangents.append((slope * logits_tangent).sum(1))
        tangent = torch.cat(tangents)
        tangent = tangent if reduction == "none" else tangent.sum()
        return (tangent, *(None for there in ctx.summed if there)) if any(ctx.summed) else tangent


def _scaled(ctx: Any, grad_output: Tensor, saved: Sequence[Any]) -> list[Tensor | None]:
    """Scale the gradients of the sum, computed in forward, to those of L."""
    _input, _linear_weight, _linear_bias, target, weight, *found = saved
    gradients = iter(found)
    ignore_index, reduction, _ = ctx.settings
    scale = grad_output
    if reduction == "mean":  # with no sample to count, 0 instead of 0 / 0, as in torch
        scale = scale / divisor_of_mean(target, weight, ignore_index)
        scale = torch.where(is_counted(target, ignore_index).any(), scale, 0)
    times = Tensor.mul if _is_kept() else Tensor.mul_
    return [times(next(gradients), scale) if there else None for there in ctx.summed]


def _is_kept() -> bool:
    """Whether this graph may be run backward once more."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._autograd._get_current_graph_task_keep_graph()


def _recomputed(ctx: Any, grad_output: Tensor, saved: Sequence[Any]) -> list[Tensor | None]:
    """Compute Backward from the inputs; to be differentiated once more, from all rows at once."""
    *mapped, target, weight = saved[:5]
    input, linear_weight, _ = mapped
    ignore_index, reduction, smoothing = ctx.settings
    plain = may_overwrite(grad_output)
    sampling = target, weight, ignore_index, reduction
    factor = None if smoothing else common_factor(grad_output, *sampling)
    factors = [] if factor is not None else sample_factors(widen(grad_output), *sampling)
    gradients = _Gradients(linear_weight, ctx.needs_input_grad[:3])
    for chunk in _chunks(input, ctx.rows if plain else len(input)):
        p = _by_rows(torch.softmax, _logits(input[chunk], *mapped[1:]), inplace=plain)
        if factor is not None:
            slope = common_slope(p, 1, target[chunk], factor)
        else:
            parts = [each[chunk] for each in factors]
            slope = index_slope(p, 1, parts, weight, smoothing, inplace=plain)
        gradients.add(slope, input[chunk])
        del p, slope  # or it would be held while the next chunk is computed
    return [
        None if gradient is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip(gradients.totals(), mapped, strict=True)
    ]


class _Gradients:
    """Gradients of input, weight and bias of the affine map, from one chunk after another.

    In float32 at least, so that half precision rounds a chunk, not every sum.
    """

    def __init__(self, linear_weight: Tensor, wanted: Sequence[bool]) -> None:
        self.linear_weight = linear_weight
        self.wanted = wanted
        self.input: list[Tensor] = []
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, slope: Tensor, x: Tensor) -> None:
        """Add what the rows ``x`` contribute, given ``slope``, their dL/dz."""
        of_input, of_weight, of_bias = self.wanted
        if of_bias:
            total = slope.sum(0)
            self.bias = total if self.bias is None else self.bias.add_(total)
        slope = slope.to(x.dtype)
        if of_input:
            self.input.append(slope @ self.linear_weight)
        if of_weight:
            if self.weight is None:
                self.weight = widen(slope.mT @ x)
            elif self.weight.dtype == x.dtype:
                self.weight.addmm_(slope.mT, x)  # without a temporary as large as the weight
            else:
                self.weight.add_(slope.mT @ x)

    def totals(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients that are wanted, None for the others."""
        return _joined(self.input) if self.input else None, self.weight, self.bias


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _logits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return widen(torch.nn.functional.linear(input, weight, bias))


def _by_rows(function: Callable[..., Tensor], logits: Tensor, *, inplace: bool) -> Tensor:
    """Apply softmax or log_softmax to each row; in place a block of rows after another."""
    if not inplace or (length := block_length(logits)) >= len(logits):
        return function(logits, 1)
    for block in logits.split(length):
        block.copy_(function(block, 1))
    return logits


def _chunks(input: Tensor, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, max(len(input), 1), max(rows, 1))]


_linear_cross_entropy = bind(
    _LinearCrossEntropy,
    "input (N, in_features) or (in_features,), linear_weight (C, in_features) and linear_bias "
    "(C,) of one dtype; target (N,) or () of int64 class indices in [0, C) or ignore_index; "
    "weight (C,); label_smoothing in [0, 1]",
)


@overridable(getattr(torch.nn.functional, "linear_cross_entropy", None))  # new in torch 2.13
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: "LinearCrossEntropyOptions | None" = None,
) -> Tensor:
    """Cross-entropy of an affine map; drop-in for :func:`torch.nn.functional.linear_cross_entropy`.

    The same as ``cross_entropy(linear(input, linear_weight, linear_bias), target, ...)`` without
    the N x C logits: for class indices they are computed a chunk of rows at a time. The gradient of
    a reduced loss takes no more products of matrices than those two ops take, but one more in half
    precision and where input and weight together are larger than the logits. A second derivative,
    ``torch.func`` and targets other than class indices do hold the logits. Compiled, the chunks
    are unrolled, for one number of samples; exported, for any number, there is one.

    Args:
        input: ``(N, in_features)`` or ``(in_features,)``.
        linear_weight: ``(C, in_features)``, or ``(C, d1, ..., dK, in_features)`` for K-dim targets.
        target: Class indices in [0, C), ``(N,)``, ``()`` or ``(N, d1, ..., dK)``; or probabilities
            of the shape of the logits.
        linear_bias: ``(C,)``, ``(C, d1, ..., dK)`` or ``None``.
        weight: Factor for each class, ``(C,)``.
        reduction: ``none``, ``mean`` (by the sum of the samples' weights) or ``sum``.
        ignore_index: Samples with this index count neither in the loss nor in the mean; ``None``
            for -100. Only for class indices.
        label_smoothing: Share in [0, 1] of the target spread evenly over all classes.
        options: Its ``batch_chunk_size`` sets the rows of a chunk. There is nothing else to
            choose here: chunks are the default, and every derivative is exact.

    Returns:
        A scalar, or the shape of the class indices for ``none``; in the dtype of ``input``,
        float32 for half inputs under autocast.

    Raises:
        IndexError: A class index outside [0, C), on CPU.
        ValueError: Batch sizes differ; unknown ``reduction``.
        RuntimeError: Other shapes or dtypes that do not fit; ``label_smoothing`` outside [0, 1];
            ``weight`` of class indices requires grad; ``ignore_index`` beside probabilities.
    """
    _check(input, linear_weight, linear_bias)
    classes, *dims, _features = linear_weight.shape
    if dims or target.shape != input.shape[:-1]:
        if ignore_index is not None and target.shape == (*input.shape[:-1], classes, *dims):
            raise RuntimeError(
                "ignore_index cannot be specified when target contains probabilities, "
                f"got {ignore_index}"
            )
        flat_bias = None if linear_bias is None else linear_bias.reshape(-1)
        logits = linear(input, linear_weight.flatten(0, -2), flat_bias)
        return cross_entropy(
            logits.reshape(*input.shape[:-1], classes, *dims),
            target,
            weight,
            ignore_index=-100 if ignore_index is None else ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    reduction = resolve_reduction(reduction, None, None)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    check_constant_weights("linear_cross_entropy with class indices", weight=weight)
    input_, weight_, bias_ = lower_precision(input, linear_weight, linear_bias)
    unbatched = input.dim() == 1
    if unbatched:
        input_, target = input_[None], target[None]
    in_forward = (
        reduction != "none"
        and widen(input_) is input_
        and not torch._C._are_functorch_transforms_active()
        and input_.numel() + weight_.numel() <= len(input_) * classes
    )
    result = _linear_cross_entropy(
        input_,
        weight_,
        bias_,
        target,
        weight,
        -100 if ignore_index is None else ignore_index,
        reduction,
        label_smoothing,
        _rows_of_chunk(weight_, options),
        tuple(in_forward and _requires_grad(tensor) for tensor in (input_, weight_, bias_)),
    )
    loss: Tensor = result[0] if isinstance(result, tuple) else result
    if unbatched and reduction == "none":
        loss = loss.squeeze(0)
    return loss if autocasts(input) else loss.to(input.dtype)


def _requires_grad(tensor: Tensor | None) -> bool:
    return torch.is_grad_enabled() and tensor is not None and tensor.requires_grad


def _rows_of_chunk(linear_weight: Tensor, options: "LinearCrossEntropyOptions | None") -> int:
    if options is not None and options.batch_chunk_size is not None:
        return options.batch_chunk_size
    classes, features = linear_weight.shape
    least = _CPU_CHUNK if linear_weight.device.type == "cpu" else _DEVICE_CHUNK
    # A third of the memory that the weight's gradient takes. Half as many rows take 6 % more time.
    return max(features // 3, least // max(classes, 1), 1)


def _check(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    if input.dim() not in (1, 2):
        raise RuntimeError(f"expected input of 1 or 2 dims, got {tuple(input.shape)}")
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"expected linear_weight of at least 2 dims, got {tuple(linear_weight.shape)}"
        )
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected as many features in input as in linear_weight, got "
            f"{tuple(input.shape)} and {tuple(linear_weight.shape)}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(
            f"expected linear_bias of shape {tuple(linear_weight.shape[:-1])}, "
            f"got {tuple(linear_bias.shape)}"
        )
    if input.dim() == 1 and linear_weight.dim() > 2:
        raise RuntimeError(
            f"expected input (N, in_features) beside linear_weight {tuple(linear_weight.shape)}, "
            f"got {tuple(input.shape)}"
        )
