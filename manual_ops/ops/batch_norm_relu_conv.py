"""Batch norm, rectifier and convolution as one op that saves the input of the norm alone.

Index convention: ``n`` batch, ``c`` channel of the input, ``q`` input position, ``o`` out-channel,
``u`` output position, ``k`` kernel position; x input, m, v, r, h, w, b, N as in batch_norm.py, W, B
weight and bias of the convolution, R residual (0 if None).

Forward:   a[n, c, q] = max(t[n, c, q], 0),  t[n, c, q] = h[n, c, q] w[c] + b[c] + R[n, c, q]
           y          = conv(a, W) + B
Training:  m[c] = sum_{n, q} x[n, c, q] / N,  v[c] = sum_{n, q} (x[n, c, q] - m[c])^2 / N
Backward:  dL/dW, dL/dB, A[n, c, q] = those of conv.py with ``a`` for its input, A = dL/da
           g[n, c, q] = A[n, c, q] if a[n, c, q] > 0 else 0
           dL/dR      = g
           dL/db[c]    = sum_{n, q} g[n, c, q]
           dL/dw[c]    = sum_{n, q} g[n, c, q] h[n, c, q]
           dL/dx[n, c, q] = w r (g[n, c, q] - dL/db / N - h[n, c, q] dL/dw / N)
Tangent:   t'         = w (r (x' - m') + r' (x - m)) + w' h + b' + R'
           a'         = t' if a > 0 else 0,  y' = conv(a', W) + conv(a, W') + B'

It is the chain rule through three ops, whose derivations stand in batch_norm.py, relu.py and
conv.py. Apart they save x for the norm, ``a`` for the rectifier and the convolution. Here ``a`` is
computed again in backward, from x, m and r: one pass over memory, where a convolution takes many.
Where ``a`` is wanted as well, as the residual of a later block, it is a second output, and what
reaches it is added to ``A``. m and r are outputs, for the sake of higher orders, as in
batch_norm.py. In evaluation m and v are constants, and the three ops run one after another.
Source: Ioffe and Szegedy, Batch Normalization (2015), section 3; He et al., Identity Mappings in
Deep Residual Networks (2016); recomputation: Pleiss et al., Memory-Efficient Implementation of
DenseNets (2017).
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import is_dispatch_watched, may_overwrite
from .._overridable import overridable
from .._precision import lower_precision, widen
from ._refusal import no_tensor
from ._sizes import IntOrTuple, as_tuple
from .batch_norm import (
    batch_norm,
    check,
    fused_evaluation,
    fused_training,
    normalised,
    plain_training,
    track,
    training_gradients,
    training_tangents,
)
from .conv import EXPECTS, Problem, conv2d, gradients, plain_convolution, symmetric_padding, tangent
from .relu import rectifier_chain, relu


class _BatchNormReLUConvolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> tuple[Tensor | None, ...]:
        settings = (running_mean, running_var, momentum, eps)
        output, *statistics = plain_training(input, weight, bias, *settings)
        activation = torch.relu(output if residual is None else output + residual)
        conv_settings = (stride, padding, dilation, groups)
        return (
            _convolved(activation, conv_weight, conv_bias, *conv_settings),
            activation,
            *statistics,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, residual, conv_weight, *_ = inputs
        _output, activation, mean, rstd, unbiased_variance = output
        ctx.problem = Problem.of(activation, conv_weight, inputs[-4:])
        if unbiased_variance is not None:
            ctx.mark_non_differentiable(unbiased_variance)
        ctx.set_materialize_grads(False)
        saved = (input, weight, mean, rstd, bias, residual, conv_weight)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_activation: Tensor | None,
        grad_mean: Tensor | None,
        grad_rstd: Tensor | None,
        _grad_variance: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd, bias, residual, conv_weight = ctx.saved_tensors
        *needs_norm, needs_residual, needs_conv_weight, needs_conv_bias = ctx.needs_input_grad[:6]
        activation = _activation(input, mean, rstd, weight, bias, residual)
        g = grad_conv_weight = grad_conv_bias = None
        if grad_output is not None:
            needs = (True, needs_conv_weight, needs_conv_bias)
            convolved = activation.to(conv_weight.dtype)
            g, *of_convolution = gradients(grad_output, convolved, conv_weight, ctx.problem, needs)
            grad_conv_weight, grad_conv_bias = of_convolution
        g = _passed_back(g, grad_activation, activation)
        cotangents = (g, grad_mean, grad_rstd)
        return (
            *training_gradients(*cotangents, input, weight, mean, rstd, needs_norm),
            g.to(residual.dtype) if needs_residual and g is not None else None,
            grad_conv_weight,
            grad_conv_bias,
            *(None for _ in range(8)),
        )

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        residual_tangent: Tensor | None,
        conv_weight_tangent: Tensor | None,
        conv_bias_tangent: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd, bias, residual, conv_weight = ctx.saved_tensors
        activation = _activation(input, mean, rstd, weight, bias, residual)
        tangents = (input_tangent, weight_tangent, bias_tangent)
        inner, *of_statistics = training_tangents(*tangents, input, weight, mean, rstd)
        if residual_tangent is not None:
            inner = inner + residual_tangent
        activation_tangent = rectifier_chain(inner, activation)
        if conv_weight_tangent is None:
            conv_weight_tangent = torch.zeros_like(conv_weight)
        output_tangent = tangent(
            activation.to(conv_weight.dtype),
            conv_weight,
            activation_tangent.to(conv_weight.dtype),
            conv_weight_tangent,
            conv_bias_tangent,
            ctx.problem.settings,
        )
        return output_tangent, activation_tangent, *of_statistics, None


def _passed_back(
    by_convolution: Tensor | None, directly: Tensor | None, activation: Tensor
) -> Tensor | None:
    """Return g, from what reaches a by way of the convolution and directly."""
    terms = [t.to(activation.dtype) for t in (by_convolution, directly) if t is not None]
    return rectifier_chain(functools.reduce(torch.add, terms), activation) if terms else None


def _in_place(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    *conv_settings: Any,
) -> tuple[Tensor | None, ...]:
    """``_BatchNormReLUConvolution.forward`` by ATen's kernel of batch norm, and in place."""
    settings = (running_mean, running_var, momentum, eps)
    output, *statistics = fused_training(input, weight, bias, *settings)
    activation = _rectified_in_place(output, residual)
    return _convolved(activation, conv_weight, conv_bias, *conv_settings), activation, *statistics


def _activation(
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Return a, computed again."""
    if may_overwrite(input):  # in one pass: evaluation by the batch's own statistics
        weight, bias = (None if t is None else widen(t) for t in (weight, bias))
        output = fused_evaluation(input, weight, bias, mean, rstd**-2, 0)
        return _rectified_in_place(output, residual)
    output = normalised(widen(input), mean, rstd, weight, bias).to(input.dtype)
    return torch.relu(output if residual is None else output + residual)


def _rectified_in_place(output: Tensor, residual: Tensor | None) -> Tensor:
    if is_dispatch_watched():
        return torch.relu(output if residual is None else output + residual)
    if residual is None:
        return output.relu_()
    if torch.result_type(output, residual) == output.dtype:
        return output.add_(residual).relu_()
    return (output + residual).relu_()


def _convolved(
    activation: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, *conv_settings: Any
) -> Tensor:
    return plain_convolution(
        activation.to(conv_weight.dtype), conv_weight, conv_bias, *conv_settings
    )


_batch_norm_relu_convolution = bind(
    _BatchNormReLUConvolution,
    "input (N, C, H, W), weight and bias (C,), residual of the input's shape; and for the "
    f"convolution {EXPECTS}",
    _in_place,
)


def _one_by_one(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    residual: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    return_activation: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    statistics = (running_mean, running_var)
    output = batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    activation = relu(output if residual is None else output + residual)
    convolved = conv2d(activation, conv_weight, conv_bias, stride, padding, dilation, groups)
    return (convolved, activation) if return_activation else convolved


@overridable(parts=_one_by_one)
def batch_norm_relu_conv2d(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    residual: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    return_activation: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise, add, rectify, convolve: ``conv2d(relu(batch_norm(input) + residual))``.

    In training only ``input`` (and ``residual``) are saved for backward, no activation.

    Args:
        input: ``(N, C, H, W)``.
        running_mean: ``(C,)`` or ``None``, as in :func:`batch_norm`, like the next three.
        running_var: ``(C,)`` or ``None``.
        weight: ``(C,)`` or ``None`` for 1.
        bias: ``(C,)`` or ``None`` for 0.
        conv_weight: ``(C_out, C / groups, K_h, K_w)``.
        conv_bias: ``(C_out,)`` or ``None``.
        residual: Added before the rectifier; of the shape of ``input``, or ``None``.
        training: Normalise by the batch's own statistics.
        momentum: Share of the batch's statistics in the running ones.
        eps: Added to the variance.
        stride: Step of the kernel, >= 1; one number or one for each dim, like the next two.
        padding: Zeros added at both ends, ``"valid"`` (none) or ``"same"`` (output size H, W).
        dilation: Distance between kernel elements, >= 1.
        groups: Number of separate groups of channels; divides C and C_out.
        return_activation: Also return what was convolved, ``relu(batch_norm(input) + residual)``.

    Returns:
        ``(N, C_out, H_out, W_out)`` as :func:`conv2d`; with ``return_activation`` also the
        activation, of the shape of ``input``.

    Raises:
        ValueError, RuntimeError: What :func:`batch_norm` and :func:`conv2d` refuse; a residual of
            another shape than ``input``.
        TypeError: What should be a tensor is none.
    """
    _check(input, weight, bias, conv_weight, residual)
    statistics = (running_mean, running_var)
    strides, dilations = as_tuple(stride, 2), as_tuple(dilation, 2)
    paddings = symmetric_padding(padding, conv_weight, strides, dilations)
    # Of a convolution alone there is no gradient that needs the norm's input.
    arguments = (input, weight, bias, residual)
    of_norm = any(t.requires_grad for t in arguments if t is not None)
    if not (training and of_norm and input.numel()) or paddings is None:
        return _one_by_one(
            *(input, *statistics, weight, bias, conv_weight, conv_bias, residual, training),
            *(momentum, eps, stride, padding, dilation, groups, return_activation),
        )
    check(input, training, eps, *statistics, weight, bias)
    conv_weight, conv_bias = lower_precision(conv_weight, conv_bias)
    conv_settings = (strides, paddings, dilations, groups)
    convolved, activation, mean, _rstd, unbiased_variance = _batch_norm_relu_convolution(
        *(input, weight, bias, residual, conv_weight, conv_bias),
        *(*statistics, momentum, eps, *conv_settings),
    )
    if unbiased_variance is not None:
        track(statistics, (mean, unbiased_variance), momentum)
    return (convolved, activation) if return_activation else convolved


def _check(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_weight: Tensor,
    residual: Tensor | None,
) -> None:
    images = {"input": input, "conv_weight": conv_weight}
    images |= {} if residual is None else {"residual": residual}
    channels = {name: t for name, t in (("weight", weight), ("bias", bias)) if t is not None}
    if not all(isinstance(tensor, Tensor) for tensor in (images | channels).values()):
        raise no_tensor("batch_norm_relu_conv2d", **images, **channels)
    for name, tensor in images.items():
        if tensor.dim() != 4:
            raise RuntimeError(
                f"batch_norm_relu_conv2d: expected {name} of 4 dims, got {tuple(tensor.shape)}"
            )
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(
            f"batch_norm_relu_conv2d: expected residual of the shape of input, "
            f"{tuple(input.shape)}, got {tuple(residual.shape)}"
        )
