"""Scaled dot-product attention.

Index convention: ``l`` queries, ``s`` and ``t`` keys, ``e`` features of query and key, ``f``
features of value; all other dims (samples, heads) are batch dims. c scale, M[l, s] mask added to
the scores (0 if None; -inf forbids), D[l, s] dropout factor: 0 with probability p, else
1 / (1 - p), drawn for each call (1 if p = 0).

Forward:   A[l, s] = c sum_e q[l, e] k[s, e] + M[l, s]
           P[l, s] = exp(A[l, s]) / sum_t exp(A[l, t]),  W = P D
           o[l, f] = sum_s W[l, s] v[s, f]
Backward:  dL/dv[s, f] = sum_l W[l, s] dL/do[l, f]
           dL/dW[l, s] = sum_f dL/do[l, f] v[s, f]
           dL/dA[l, s] = P[l, s] (R[l, s] - sum_t P[l, t] R[l, t]),  R = D dL/dW
           dL/dq[l, e] = c sum_s dL/dA[l, s] k[s, e]
           dL/dk[s, e] = c sum_l dL/dA[l, s] q[l, e]
           dL/dM       = dL/dA, summed over the dims along which M is broadcast
Tangent:   A' = c (q' k^T + q k'^T) + M'
           P'[l, s] = P[l, s] (A'[l, s] - sum_t P[l, t] A'[l, t]),  W' = P' D
           o' = W' v + W v'

Derivation: o is linear in v and in W, ``A`` in each of q, k and M; between ``A`` and P stands the
Jacobian of softmax, diag(p) - p p^T for each query. Where W is returned too, what reaches it is
added to dL/dW. A query that may attend to no key has W = 0 and o = 0, as in torch.

Memory: nothing of the size of P is saved, nor anything but the inputs. Backward computes P once
more from them, a block of queries after another, so that it never holds the whole of it. (Torch's
fused kernels work the same way, but save the output and a normaliser for each query as well.)
Dropout does save a byte for each weight, as a draw cannot be repeated; and a derivative of the
derivative keeps P.
Source: Vaswani et al., Attention Is All You Need (2017), section 3.2.1; the recomputation by
blocks: Dao et al., FlashAttention (2022), appendix B.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import may_overwrite
from .._overridable import overridable
from .._precision import lower_precision, widen, without_autocast
from ._refusal import no_tensor
from .softmax import times_jacobian

# Scores in a block of backward: for each thread of a CPU what stays in its cache; elsewhere more,
# as launches are dear.
_CPU_BLOCK, _DEVICE_BLOCK = 2**17, 2**26
# Queries in a block of causal attention: keys after the last of them are left out.
_CAUSAL_ROWS = 64


class _Attention(Function):
    """On 4-D tensors; ``key`` and ``value`` may have one head for all."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        kept: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float,
        need_weights: bool,
    ) -> Any:
        transformed = torch._C._are_functorch_transforms_active()
        if kept is None and not need_weights and not transformed:
            # The same by a fused kernel, which torch.func cannot map or differentiate. It keeps
            # the scores out of memory, in compiled code too.
            return torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask,
                is_causal=is_causal,
                scale=scale,
                enable_gqa=bool(key.shape[1] != query.shape[1]),  # a tensor under jit.trace
            )
        bias, attends = _additive(attn_mask)
        p = _probabilities(widen(query) * scale, key, bias, is_causal)
        weights = _product(p, _dropout_factor(kept, dropout_p, p.dtype), attends)
        output = (weights @ widen(value)).to(query.dtype)
        return (output, weights.to(query.dtype)) if need_weights else output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        query, key, value, attn_mask, kept, *ctx.settings, ctx.need_weights = inputs
        needs_query, needs_key, _, needs_mask, *_ = ctx.needs_input_grad
        needs_scores = needs_query or needs_key or needs_mask
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value if needs_scores else None, attn_mask, kept)
        ctx.save_for_forward(query, key, value, attn_mask, kept)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_weights: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        query, key, value, attn_mask, kept = ctx.saved_tensors
        cotangents = [g for g in (grad_output, grad_weights) if g is not None]
        if value is None and grad_output is not None:
            # Its own gradient alone is needed, and for that its shape.
            value = grad_output.new_empty(()).expand(*key.shape[:3], grad_output.shape[-1])
        if value is None or not cotangents:
            return (None,) * 9
        masks = (*_additive(attn_mask), kept)
        operands = (query, key, value, *masks, grad_output, grad_weights)
        by_blocks = all(map(may_overwrite, cotangents))
        gradients_of = _gradients_by_blocks if by_blocks else _gradients
        with without_autocast(cotangents[0].device.type):
            gradients = gradients_of(operands, ctx.settings, ctx.needs_input_grad[:4])
        return (
            *(
                None if gradient is None else gradient.to(argument.dtype)
                for gradient, argument in zip(
                    gradients, (query, key, value, attn_mask), strict=True
                )
            ),
            *(None for _ in range(5)),
        )

    @staticmethod
    def jvp(
        ctx: Any,
        query_tangent: Tensor | None,
        key_tangent: Tensor | None,
        value_tangent: Tensor | None,
        mask_tangent: Tensor | None,
        *_: None,
    ) -> Any:
        query, key, value, attn_mask, kept = ctx.saved_tensors
        dropout_p, is_causal, scale = ctx.settings
        bias, attends = _additive(attn_mask)
        scaled = widen(query) * scale
        p = _probabilities(scaled, key, bias, is_causal)
        factors = (_dropout_factor(kept, dropout_p, p.dtype), attends)
        scores_tangent = torch.zeros_like(p) if mask_tangent is None else mask_tangent
        if query_tangent is not None:
            scores_tangent = scores_tangent + widen(query_tangent) * scale @ widen(key).mT
        if key_tangent is not None:
            scores_tangent = scores_tangent + scaled @ widen(key_tangent).mT
        weights_tangent = _product(times_jacobian(scores_tangent, p, -1), *factors)
        output_tangent = weights_tangent @ widen(value)
        if value_tangent is not None:
            output_tangent = output_tangent + _product(p, *factors) @ widen(value_tangent)
        output_tangent = output_tangent.to(query.dtype)
        if ctx.need_weights:
            return output_tangent, weights_tangent.to(query.dtype)
        return output_tangent


# query, key, value, bias, attends, kept, gradients of output and of weights
Operands = Sequence[Any]
Gradients = list[Tensor | None]  # of query, key, value and mask, summed in float32 or wider
Settings = Sequence[Any]  # dropout_p, is_causal, scale


def _gradients(
    operands: Operands,
    settings: Settings,
    needs: Sequence[bool],
    first_query: int = 0,
    *,
    in_place: bool = False,
) -> Gradients:
    """Compute Backward, for the gradients that are needed.

    ``first_query`` is the position of the first query in the whole, for the causal mask;
    ``in_place`` works in temporaries of its own.
    """
    widened: list[Any] = [None if operand is None else widen(operand) for operand in operands]
    query, key, value, bias, attends, kept, grad_output, grad_weights = widened
    dropout_p, is_causal, scale = settings
    needs_query, needs_key, needs_value, needs_mask = needs
    scaled = query * scale
    p = _probabilities(scaled, key, bias, is_causal, first_query, in_place=in_place)
    times = torch.bmm if query.dim() == 3 else torch.matmul
    keep = _dropout_factor(kept, dropout_p, p.dtype)
    grad_query = grad_key = grad_value = grad_scores = None
    if grad_output is not None:
        grad_output = _product(grad_output, attends)
        if needs_value:
            grad_value = times(_product(p, keep).mT, grad_output)
    if needs_query or needs_key or needs_mask:
        parts = []
        if grad_output is not None:
            parts.append(times(grad_output, value.mT))
        if grad_weights is not None:
            parts.append(_product(grad_weights, attends))
        into_scores = _product(sum(parts[1:], start=parts[0]), keep)
        out = into_scores if in_place and grad_output is not None else None
        grad_scores = times_jacobian(into_scores, p, -1, out=out)
        if needs_query:
            grad_query = times(grad_scores, key)
            grad_query = grad_query.mul_(scale) if in_place else grad_query * scale
        grad_key = times(grad_scores.mT, scaled) if needs_key else None
    gradients = (grad_query, grad_key, grad_value, grad_scores if needs_mask else None)
    return [
        None if gradient is None else _summed_to(gradient, operand.shape)
        for gradient, operand in zip(gradients, operands, strict=False)
    ]


def _gradients_by_blocks(
    operands: Operands, settings: Settings, needs: Sequence[bool]
) -> Gradients:
    """Compute Backward a block of queries after another, never holding all the scores."""
    query, key, *_ = operands
    _dropout_p, is_causal, _scale = settings
    blocks = list(_blocks(query, key, is_causal))
    if len(blocks) == 1:
        return _gradients_of_one_block(operands, settings, needs)
    totals = [
        torch.zeros_like(widen(operand)) if needed else None
        for operand, needed in zip(operands, needs, strict=False)
    ]
    for sample, head, row, column in blocks:
        by_query, by_key = (sample, head, row), (sample, head, column)
        by_both = (sample, head, row, column)
        indices = (by_query, by_key, by_key, *[by_both] * 3, by_query, by_both)  # of Operands
        parts = [
            None if operand is None else _part(operand, index)
            for operand, index in zip(operands, indices, strict=True)
        ]
        gradients = _gradients(parts, settings, needs, row.start, in_place=True)
        for total, gradient, index in zip(totals, gradients, indices, strict=False):
            if total is not None and gradient is not None:
                _part(total, index).add_(gradient)
    return totals


def _gradients_of_one_block(
    operands: Operands, settings: Settings, needs: Sequence[bool]
) -> Gradients:
    query, key, value, *masks, _grad_output, grad_weights = operands
    batch = query.shape[:2]
    masked = any(operand is not None for operand in (*masks, grad_weights))
    if masked or key.shape[:2] != batch or value.shape[:2] != batch:
        return _gradients(operands, settings, needs, in_place=True)
    # Samples and heads as one dim: a product is then one call of torch's, not six.
    flat = [None if operand is None else operand.flatten(0, 1) for operand in operands]
    gradients = _gradients(flat, settings, needs, in_place=True)
    return [None if found is None else found.unflatten(0, batch) for found in gradients]


def _blocks(query: Tensor, key: Tensor, is_causal: bool) -> Iterator[tuple[slice, ...]]:
    """Cut samples, heads and queries; where causal, also the keys, after the last query."""
    samples, heads, queries, _ = query.shape
    keys = key.shape[2]
    on_cpu = query.device.type == "cpu"
    room = (_CPU_BLOCK * torch.get_num_threads() if on_cpu else _DEVICE_BLOCK) // max(keys, 1)
    cuts = []
    most = _CAUSAL_ROWS if is_causal else queries
    for count, limit in ((queries, most), (heads, heads), (samples, samples)):
        step = max(1, min(limit, room))
        room //= step
        cuts.append([slice(start, start + step) for start in range(0, count, step)])
    for row, head, sample in itertools.product(*cuts):
        yield sample, head, row, slice(0, row.stop if is_causal else keys)


def _part(tensor: Tensor, index: tuple[slice, ...]) -> Tensor:
    """Slice all dims but those of size 1, which are broadcast."""
    sizes = zip(tensor.shape, index, strict=False)
    return tensor[tuple(slice(None) if size == 1 else cut for size, cut in sizes)]


def _additive(attn_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask as numbers to add to the scores, and which queries attend to any key.

    Where a query attends to none, softmax would be 0 / 0: there the mask is 0, and the second
    result, ``(..., L, 1)``, is 0, to multiply the weights by.
    """
    if attn_mask is None:
        return None, None
    if attn_mask.dtype == torch.bool:
        attends = attn_mask.any(-1, keepdim=True)
        bias = torch.zeros_like(attn_mask, dtype=torch.float32)
        return bias.masked_fill(attn_mask ^ attends, -math.inf), attends.float()
    attends = ~attn_mask.isneginf().all(-1, keepdim=True)
    return widen(attn_mask).masked_fill(~attends, 0), attends.float()


def _probabilities(
    scaled_query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    first_query: int = 0,
    *,
    in_place: bool = False,
) -> Tensor:
    times = torch.bmm if scaled_query.dim() == 3 else torch.matmul
    scores = times(scaled_query, widen(key).mT)
    if is_causal:
        forbidden = torch.full(
            scores.shape[-2:], -math.inf, dtype=scores.dtype, device=scores.device
        )
        bias = forbidden.triu_(first_query + 1)
    if bias is not None:
        scores = scores.add_(bias) if in_place else scores + bias
    return torch.softmax(scores, -1)


def _dropout_factor(kept: Tensor | None, p: float, dtype: torch.dtype) -> Tensor | None:
    return None if kept is None else kept.to(dtype) * (0.0 if p == 1 else 1 / (1 - p))


def _product(tensor: Tensor, *factors: Tensor | None) -> Tensor:
    for factor in factors:
        if factor is not None:
            tensor = tensor * factor
    return tensor


def _summed_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.sum_to_size(shape)


_attention = bind(
    _Attention,
    "query (*, L, E), key (*, S, E) and value (*, S, F) of one floating dtype, attn_mask "
    "broadcastable to (*, L, S) and boolean or of query's dtype",
)


@overridable(torch.nn.functional.scaled_dot_product_attention)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend; drop-in for :func:`torch.nn.functional.scaled_dot_product_attention`.

    Unlike torch's on CPU, differentiable twice and more, and in forward mode.

    Args:
        query: ``(*, L, E)``, ``*`` any number of batch dims, the last of them heads.
        key: ``(*, S, E)``.
        value: ``(*, S, F)``.
        attn_mask: Broadcastable to ``(*, L, S)``. Boolean: True where a query may attend to a
            key. Floating: added to the scores, and differentiable.
        dropout_p: Probability in [0, 1] of a weight to be zeroed; there is no training flag.
        is_causal: Query ``l`` attends to the keys up to ``l`` only.
        scale: Factor of the scores; ``None`` for ``1 / sqrt(E)``.
        enable_gqa: Groups of query heads share a head of key and value.

    Returns:
        ``(*, L, F)``, in query's dtype, or the autocast dtype under autocast; 0 for a query
        that may attend to no key.

    Raises:
        RuntimeError: Shapes or dtypes do not fit each other; both ``attn_mask`` and
            ``is_causal``; ``dropout_p`` outside [0, 1]; heads that cannot be grouped.
        TypeError: ``query``, ``key`` or ``value`` is not a Tensor.
    """
    output, _ = attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, need_weights=False
    )
    return output


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``scaled_dot_product_attention``; also return W, ``(*, L, S)``, if asked for."""
    query, key, value, attn_mask = lower_precision(query, key, value, attn_mask)
    _check(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    if grouped:  # the queries' heads in groups, each with one head of key and value
        groups = (key.shape[-3], query.shape[-3] // key.shape[-3])
        query, key, value = query.unflatten(-3, groups), key.unsqueeze(-3), value.unsqueeze(-3)
        if attn_mask is not None and attn_mask.dim() > 2:
            shared = attn_mask.shape[-3] == 1
            attn_mask = attn_mask.unsqueeze(-3) if shared else attn_mask.unflatten(-3, groups)
    batch = _broadcast(*(tensor.shape[:-2] for tensor in (query, key, value)))
    leading, heads = batch[:-1], 1 if not batch else batch[-1]
    own_heads = 1 if grouped else heads
    dtype = query.dtype
    if any(tensor.shape[:-2] != batch for tensor in (query, key, value)) and not grouped:
        # Their gradients are sums over the batch, which half precision would round one by one.
        query, key, value = widen(query), widen(key), widen(value)
        attn_mask = None if attn_mask is None else widen(attn_mask)
    if attn_mask is not None:
        attn_mask = _mask_as_4d(attn_mask, leading)
    query = _as_4d(query, leading, heads)
    kept = _draw(query, key, dropout_p) if dropout_p > 0 else None
    result = _attention(
        query,
        _as_4d(key, leading, own_heads),
        _as_4d(value, leading, own_heads),
        attn_mask,
        kept,
        dropout_p,
        is_causal,
        scale,
        need_weights,
    )
    if grouped:
        batch = (*batch[:-2], batch[-2] * batch[-1])
    output, weights = result if need_weights else (result, None)
    output = _with_batch(output, batch).to(dtype)
    return output, None if weights is None else _with_batch(weights, batch).to(dtype)


def _broadcast(*shapes: torch.Size) -> tuple[int, ...]:
    # torch.broadcast_shapes takes longer than all other checks together; a set would be quicker
    # still, but hashing a size ties compiled code to it.
    first, *others = shapes
    return first if all(shape == first for shape in others) else torch.broadcast_shapes(*shapes)


def _as_4d(tensor: Tensor, leading: Sequence[int], heads: int) -> Tensor:
    *_, rows, features = tensor.shape
    shape = (math.prod(leading), heads, rows, features)
    if tensor.shape == shape:
        return tensor
    return tensor.expand(*leading, heads, rows, features).reshape(shape)


def _mask_as_4d(attn_mask: Tensor, leading: Sequence[int]) -> Tensor:
    attn_mask = attn_mask[(None,) * (len(leading) + 3 - attn_mask.dim())]
    *own_leading, heads, rows, columns = attn_mask.shape
    if len(leading) > 1 and math.prod(own_leading) > 1:
        own_leading = list(leading)
        attn_mask = attn_mask.expand(*leading, heads, rows, columns)
    return attn_mask.reshape(math.prod(own_leading), heads, rows, columns)


def _with_batch(tensor: Tensor, batch: Sequence[int]) -> Tensor:
    shape = (*batch, *tensor.shape[-2:])
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def _draw(query: Tensor, key: Tensor, dropout_p: float) -> Tensor:
    """Return True for every weight that is kept: torch's own draw, under the same seed."""
    if dropout_p == 1:
        return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=query.device)
    weights = query.new_empty(*query.shape[:-1], key.shape[-2])
    _, kept = torch.native_dropout(weights, dropout_p, True)
    return kept


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    enable_gqa: bool,
) -> None:
    tensors = {"query": query, "key": key, "value": value}
    if attn_mask is not None:
        tensors["attn_mask"] = attn_mask
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise no_tensor("scaled_dot_product_attention", **tensors)
    expected = _unmet_by_tensors(query, key, value, enable_gqa)
    if any(tensor.device != query.device for tensor in tensors.values()):
        expected = "query, key, value and attn_mask on one device"
    if attn_mask is not None:
        if is_causal:
            expected = "no attn_mask beside is_causal"
        elif attn_mask.dtype not in (torch.bool, torch.float, query.dtype):
            expected = "attn_mask of dtype bool, float32 or that of query"
        elif not expected and not _broadcasts(attn_mask, query, key, value, enable_gqa):
            expected = "attn_mask that broadcasts to (*, L, S)"
    if not 0 <= dropout_p <= 1:
        expected = "dropout_p between 0 and 1"
    if expected:
        found = [f"{name} {tuple(t.shape)} {t.dtype} {t.device}" for name, t in tensors.items()]
        raise RuntimeError(
            f"Expected {expected}, but got {', '.join(found)}, {dropout_p=}, {is_causal=}"
        )


def _broadcasts(
    attn_mask: Tensor, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> bool:
    if enable_gqa:  # of the query's heads
        batch = (*_broadcast(*(t.shape[:-3] for t in (query, key, value))), *query.shape[-3:-2])
    else:
        batch = _broadcast(*(t.shape[:-2] for t in (query, key, value)))
    scores = (*batch, query.shape[-2], key.shape[-2])
    aligned = itertools.zip_longest(reversed(attn_mask.shape), reversed(scores), fillvalue=1)
    return all(size in (1, target) for size, target in aligned)


def _unmet_by_tensors(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> str:
    if min(query.dim(), key.dim(), value.dim()) < 2:
        return "query, key and value of at least 2 dims"
    if key.shape[-1] != query.shape[-1]:
        return "as many features in key as in query"
    if value.shape[-2] != key.shape[-2]:
        return "as many positions in value as in key"
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value of one dtype"
    tensors = (query, key, value)
    try:
        _broadcast(*(t.shape[: -3 if enable_gqa else -2] for t in tensors))
    except RuntimeError:
        return "batch dims that broadcast"
    heads, key_heads, value_heads = (t.shape[-3] if t.dim() > 2 else 1 for t in tensors)
    if enable_gqa and (key_heads != value_heads or heads % max(key_heads, 1)):
        return "as many heads in key as in value, a divisor of those of query"
    return ""
