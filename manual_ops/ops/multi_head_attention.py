"""Multi-head attention: projections, attention by heads, projection.

Index convention: ``n`` sample, ``l`` query, ``s`` key, ``i`` input feature, ``h`` head, ``d``
feature of a head, ``o`` output feature; (h, d) is feature h * width + d of all heads together.

Forward:   q[n, h, l, d] = sum_i query[l, n, i] Wq[(h, d), i] + bq[(h, d)]; k and v likewise
           a = scaled dot-product attention of q, k, v for each n and h
           y[l, n, o] = sum_{h, d} a[n, h, l, d] Wo[o, (h, d)] + bo[o]
Backward:  the chain rule through linear, attention and linear: dL/da from dL/dy (linear.py),
           dL/dq, dL/dk and dL/dv from dL/da (attention.py), and from these the gradients of
           inputs and projections (linear.py); the heads are views and only move gradients.
Tangent:   the same chain forwards.

An input that serves as query, key and value at once is projected by one matrix product.
Source: Vaswani et al., Attention Is All You Need (2017), section 3.2.2.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._overridable import overridable
from .attention import attention
from .linear import linear


@overridable(torch.nn.functional.multi_head_attention_forward)
def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Project, attend, project; drop-in for torch's ``multi_head_attention_forward``.

    A query all of whose keys are masked gets weights of 0, where torch's gives NaN if
    ``need_weights`` is set and 0 if not.

    Args:
        query: ``(L, N, E)``, or ``(L, E)`` without batch.
        key: ``(S, N, Ek)`` or ``(S, Ek)``.
        value: ``(S, N, Ev)`` or ``(S, Ev)``.
        embed_dim_to_check: E.
        num_heads: Number of heads, a divisor of E.
        in_proj_weight: ``(3 E, E)``: the projections of query, key and value, one after another.
        in_proj_bias: ``(3 E,)`` or ``None``.
        bias_k: ``(1, 1, E)`` or ``None``: one more key, the same for all samples.
        bias_v: ``(1, 1, E)`` or ``None``: its value.
        add_zero_attn: Add one more key and value of zeros.
        dropout_p: Probability of a weight to be zeroed in training.
        out_proj_weight: ``(E, E)``.
        out_proj_bias: ``(E,)`` or ``None``.
        training: Apply dropout.
        key_padding_mask: ``(N, S)`` or ``(S,)``. Boolean: True where a key is to be ignored.
            Floating: added to the scores.
        need_weights: Return the attention weights as well.
        attn_mask: ``(L, S)`` or ``(N num_heads, L, S)``. Boolean: True where attention is not
            allowed. Floating: added to the scores.
        use_separate_proj_weight: Use the three weights below instead of ``in_proj_weight``.
        q_proj_weight: ``(E, E)``.
        k_proj_weight: ``(E, Ek)``.
        v_proj_weight: ``(E, Ev)``.
        static_k: ``(N num_heads, S, E / num_heads)``: used in place of the projected key.
        static_v: ``(N num_heads, S, E / num_heads)``: used in place of the projected value.
        average_attn_weights: Return the mean of the weights over the heads.
        is_causal: Hint that ``attn_mask`` is the causal mask.

    Returns:
        Output, of query's shape, and the weights: ``None``, or ``(N, L, S)``, with a dim of
        heads before L if not averaged; without N where there is no batch.

    Raises:
        AssertionError: Shapes of query, key, value, weights or masks do not fit each other.
        RuntimeError: Shape or dtype of a mask; ``is_causal`` without ``attn_mask``.
    """
    _check(query, key, value, attn_mask, key_padding_mask, embed_dim_to_check, num_heads)
    if is_causal and attn_mask is None:
        raise RuntimeError("Expected attn_mask where the hint is_causal is given, but got None")
    _check_more_keys(bias_k, bias_v, static_k, static_v)
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = _project_each((query, key, value), weights, in_proj_bias, num_heads)
    else:
        q, k, v = _project_packed(query, key, value, in_proj_weight, in_proj_bias, num_heads)
    if static_k is not None:
        k = _by_sample("static_k", static_k, q)
    if static_v is not None:
        v = _by_sample("static_v", static_v, q)
    # As a hint alone it can spare the mask; beside other masks or weights it only repeats it.
    is_causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if is_causal else _merged(attn_mask, key_padding_mask, q.shape[0])
    if bias_k is not None and bias_v is not None:
        k, v, mask = _with_one_more(k, v, mask, _by_heads(bias_k, k), _by_heads(bias_v, v))
    if add_zero_attn:
        zero = k.new_zeros(*k.shape[:2], 1, k.shape[3])
        k, v, mask = _with_one_more(k, v, mask, zero, zero)
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.logical_not()  # attention takes True for what is attended to
    dropout_p = dropout_p if training else 0.0
    output, attention_weights = attention(
        q, k, v, mask, dropout_p, is_causal, need_weights=need_weights
    )
    output = output.permute(2, 0, 1, 3).reshape(query.shape)
    output = linear(output, out_proj_weight, out_proj_bias)
    if attention_weights is not None and average_attn_weights:
        attention_weights = attention_weights.mean(1)
    if attention_weights is not None and query.dim() == 2:
        attention_weights = attention_weights.squeeze(0)
    return output, attention_weights


def _project_each(
    inputs: tuple[Tensor, ...], weights: tuple[Any, ...], bias: Tensor | None, heads: int
) -> list[Tensor]:
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return [_project(*args, heads)[0] for args in zip(inputs, weights, biases, strict=True)]


def _project_packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Any, bias: Tensor | None, heads: int
) -> Sequence[Tensor]:
    """Project by ``(3 E, E)``, what is the same tensor in one product."""
    if key is not value:
        return _project_each((query, key, value), weight.chunk(3), bias, heads)
    if query is key:
        return _project(query, weight, bias, heads, count=3)
    sizes = [weight.shape[1], 2 * weight.shape[1]]
    query_bias, shared_bias = (None, None) if bias is None else bias.split(sizes)
    query_weight, shared_weight = weight.split(sizes)
    return [
        *_project(query, query_weight, query_bias, heads),
        *_project(key, shared_weight, shared_bias, heads, count=2),
    ]


def _project(
    input: Tensor, weight: Tensor, bias: Tensor | None, heads: int, count: int = 1
) -> tuple[Tensor, ...]:
    """Return ``count`` projections, ``(N, heads, length, width)``, as views of one product."""
    output = linear(input, weight, bias)
    if output.dim() == 2:  # no batch
        output = output.unsqueeze(1)
    length, samples, features = output.shape
    by_heads = output.reshape(length, samples, count, heads, features // (count * heads))
    return by_heads.permute(2, 1, 3, 0, 4).unbind(0)


def _by_sample(name: str, static: Tensor, like: Tensor) -> Tensor:
    """Return ``(N heads, S, width)`` as ``(N, heads, S, width)``."""
    samples, heads, _, width = like.shape
    if static.dim() != 3 or (static.shape[0], static.shape[2]) != (samples * heads, width):
        raise AssertionError(
            f"Expected {name} ({samples * heads}, S, {width}), but got {tuple(static.shape)}"
        )
    return static.reshape(samples, heads, static.shape[1], width)


def _by_heads(position: Tensor, like: Tensor) -> Tensor:
    """Return ``(1, 1, E)`` as one position of each sample, ``(N, heads, 1, width)``."""
    samples, heads, _, width = like.shape
    return position.reshape(1, heads, 1, width).expand(samples, -1, -1, -1)


def _with_one_more(
    key: Tensor, value: Tensor, mask: Tensor | None, new_key: Tensor, new_value: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append a position that no mask hides."""
    if mask is not None:
        mask = torch.cat([mask, mask.new_zeros(*mask.shape[:-1], 1)], -1)
    return torch.cat([key, new_key], 2), torch.cat([value, new_value], 2), mask


def _merged(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, samples: int
) -> Tensor | None:
    """Merge both masks into one that broadcasts to ``(N, heads, L, S)``; boolean if both are."""
    masks = []
    if attn_mask is not None:
        dims = attn_mask.shape[-2:]
        by_sample = (1, 1) if attn_mask.dim() == 2 else (samples, attn_mask.shape[0] // samples)
        masks.append(attn_mask.reshape(*by_sample, *dims))
    if key_padding_mask is not None:
        masks.append(key_padding_mask.reshape(samples, 1, 1, key_padding_mask.shape[-1]))
    if len(masks) < 2:
        return masks[0] if masks else None
    if all(mask.dtype == torch.bool for mask in masks):
        return masks[0] | masks[1]
    return _additive(masks[0]) + _additive(masks[1])


def _additive(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float).masked_fill(mask, -math.inf)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    embed_dim: int,
    heads: int,
) -> None:
    expected = ""
    if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
        expected = "query, key and value all (length, N, features) or all (length, features)"
    elif query.shape[-1] != embed_dim or embed_dim % heads:
        expected = f"{embed_dim} features in query, divisible by {heads} heads"
    elif key.shape[:-1] != value.shape[:-1]:
        expected = "key and value of one length and batch"
    elif key_padding_mask is not None and key_padding_mask.shape != key.shape[-2::-1]:
        expected = f"key_padding_mask {tuple(key.shape[-2::-1])}"
    for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            expected = f"{name} of dtype bool or floating, not {mask.dtype}"
    if expected:
        shapes = ", ".join([str(tuple(tensor.shape)) for tensor in (query, key, value)])
        raise AssertionError(f"Expected {expected}, but got query, key, value {shapes}")
    if attn_mask is not None:
        samples = query.shape[1] if query.dim() == 3 else 1
        sizes = (query.shape[0], key.shape[0])
        if tuple(attn_mask.shape) not in (sizes, (samples * heads, *sizes)):
            raise RuntimeError(
                f"Expected attn_mask {sizes} or {(samples * heads, *sizes)}, "
                f"but got {tuple(attn_mask.shape)}"
            )


def _check_more_keys(
    bias_k: Tensor | None, bias_v: Tensor | None, static_k: Tensor | None, static_v: Tensor | None
) -> None:
    if (bias_k is None) != (bias_v is None):
        raise AssertionError("Expected bias_k and bias_v together, but got one of them")
    if bias_k is not None and (static_k is not None or static_v is not None):
        raise AssertionError("Expected no bias_k and bias_v beside static_k or static_v")
