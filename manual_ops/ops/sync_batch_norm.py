"""Batch normalisation over the batches of all processes.

Index convention as in batch_norm.py: ``c`` channel, ``n`` the positions of a channel in one
process, ``p`` process. N = sum_p N_p positions in all processes; m[c], v[c] mean and variance
over them, r[c] = 1 / sqrt(v[c] + eps), h = (x - m) r, w weight, b bias, g = dL/dy, where L is
the sum of all processes' losses.

Forward:   m[c] = sum_p N_p m_p[c] / N
           v[c] = sum_p N_p (v_p[c] + (m_p[c] - m[c])^2) / N
           y[n, c] = h[n, c] w[c] + b[c]
Backward:  dL/db[c]    = sum_n g[n, c],  dL/dw[c] = sum_n g[n, c] h[n, c]      in each process
           dL/dx[n, c] = w r g[n, c] - r (sum_p w dL/db) / N - r h[n, c] (sum_p w dL/dw) / N
Tangent:   m' = sum_pn x'[n] / N,  r' = -r^3 sum_pn (x[n] - m) x'[n] / N
           y' = (x' - m') r w + (x - m) r' w + h w' + b'

Derivation: that of batch_norm.py, with each sum over the batch a sum over the processes too; one
gathering of (m_p, v_p, N_p) serves forward, one sum of both w dL/db and w dL/dw backward. v
splits into the variance within the processes and that between them, so that nothing cancels.
Weight and bias get this process's share alone: summing (or averaging) it over processes is left
to DistributedDataParallel, as in torch. Processes may hold batches of different sizes, or none.

Second and higher orders: m and r are outputs, and what reaches them in any process is summed over
the processes and added, as in batch_norm.py. The sum over processes is its own adjoint: the
derivative of sum_p z_p for each z_p is the sum of what reaches it in all of them. All processes
have to run the same derivatives in the same order, as with every collective operation.
Source: Ioffe and Szegedy, Batch Normalization (2015), section 3; the combination of variances:
Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances
(1979).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._precision import widen
from .batch_norm import (
    normalised,
    over_positions,
    per_channel,
    positions,
    tangent_of_output,
    track,
)


class _SumOverProcesses(Function):
    """``sum_p z_p``, which is its own adjoint."""

    @staticmethod
    def forward(input: Tensor, group: Any) -> Tensor:
        total = input.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _input, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_over_processes(grad_output, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, _group: None) -> Any:
        return _sum_over_processes(input_tangent, ctx.group)


_sum_over_processes = bind(_SumOverProcesses, "a tensor of floating dtype")


class _SyncBatchNorm(Function):
    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, ...]:
        x = widen(input)
        mean, variance, count = _gathered_statistics(x, group)
        rstd = torch.rsqrt(variance + eps)
        output = normalised(x, mean, rstd, weight, bias).to(input.dtype)
        return output, mean, rstd, variance * (count / (count - 1)), count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, _bias, _eps, ctx.group = inputs
        _output, mean, rstd, unbiased_variance, count = output
        ctx.mark_non_differentiable(unbiased_variance, count)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, mean, rstd, count)
        ctx.save_for_forward(input, weight, mean, rstd, count)

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_mean: Tensor | None,
        grad_rstd: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd, count = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_nothing = ctx.needs_input_grad
        g = widen(torch.zeros_like(input) if grad_output is None else grad_output)
        centred = widen(input) - per_channel(mean, input)
        over = over_positions(g)
        grad_bias, grad_weight = g.sum(over), (g * centred).sum(over) * rstd
        grad_input = None
        if needs_input:
            # Minus what reaches m and r, by way of y and directly, in all processes.
            scale = rstd if weight is None else rstd * weight
            into_mean, into_rstd = scale * grad_bias, scale * rstd * grad_weight
            if grad_mean is not None:
                into_mean = into_mean - grad_mean
            if grad_rstd is not None:
                into_rstd = into_rstd + grad_rstd * rstd**3
            total = _sum_over_processes(torch.stack([into_mean, into_rstd]), ctx.group) / count
            shift, slope = (per_channel(channels, input) for channels in total.unbind())
            grad_input = g * per_channel(scale, input) - centred * slope - shift
            grad_input = grad_input.to(input.dtype)
        return (
            grad_input,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd, count = ctx.saved_tensors
        tangent = widen(torch.zeros_like(input) if input_tangent is None else input_tangent)
        centred = widen(input) - per_channel(mean, input)
        over = over_positions(input)
        sums = torch.stack([tangent.sum(over), (centred * tangent).sum(over)])
        mean_tangent, rstd_tangent = (_sum_over_processes(sums, ctx.group) / count).unbind()
        rstd_tangent = -(rstd**3) * rstd_tangent
        output_tangent = tangent_of_output(
            tangent,
            centred,
            rstd,
            weight,
            mean_tangent,
            rstd_tangent,
            weight_tangent,
            bias_tangent,
        )
        return output_tangent.to(input.dtype), mean_tangent, rstd_tangent, None, None


def _gathered_statistics(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count of all processes' positions."""
    channels = x.shape[1]
    own = x.new_zeros(2 * channels + 1)  # of an empty batch all zero
    if x.numel():
        own[channels:-1], own[:channels] = torch.var_mean(x, over_positions(x), correction=0)
        own[-1] = positions(x)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    means, variances, counts = torch.stack(gathered).split([channels, channels, 1], 1)
    count = counts.sum()
    shares = counts / count
    mean = (means * shares).sum(0)
    return mean, ((variances + (means - mean) ** 2) * shares).sum(0), count


_sync_batch_norm = bind(
    _SyncBatchNorm, "input (N, C, *) of floating dtype and (C,) for weight and bias"
)


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    process_group: Any = None,
) -> Tensor:
    """Normalise every channel by the statistics of all processes' batches, in training.

    On any device that the process group's backend serves. Not for ``vmap``: a collective
    operation cannot be mapped.

    Args:
        input: ``(N, C, *)``; N may differ between processes and be 0.
        running_mean: ``(C,)``, moved in place towards the mean of all; ``None``: not tracked.
        running_var: ``(C,)``, likewise with the unbiased variance.
        weight: ``(C,)`` or ``None`` for 1.
        bias: ``(C,)`` or ``None`` for 0.
        momentum: Share of the batch's statistics in the running ones.
        eps: Added to the variance.
        process_group: Of torch.distributed; ``None`` for all processes.

    Returns:
        Same shape, dtype and memory format as ``input``.
    """
    output: Tensor
    output, mean, _rstd, unbiased_variance, _count = _sync_batch_norm(
        input, weight, bias, eps, process_group
    )
    track((running_mean, running_var), (mean, unbiased_variance), momentum)
    return output
