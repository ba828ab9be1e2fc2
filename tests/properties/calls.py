"""The table of generated calls: for each op a strategy of its arguments, good and bad alike."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from tests.properties.strategies import booleans, integers, lists, sampled_from, sets
from tests.properties.tensors import (
    Made,
    float_dtypes,
    layouts,
    mistakes,
    seeds,
    sizes,
    values,
)

Draw = st.DrawFn
Arguments = dict[str, Any]
Options = Mapping[str, tuple[Any, ...]]

REDUCTION: Options = {
    "reduction": ("mean", "sum", "none"),
    "size_average": (None, True, False),
    "reduce": (None, True, False),
}


class _Tensors:
    """Draws the tensors of one call: of one dtype and kind of values, each with its own layout."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.dtype = draw(float_dtypes)
        self.values = draw(values)
        self.seed = draw(seeds)

    def __call__(self, *shape: int, grad: bool | None = None, **changed: Any) -> Made:
        self.seed += 1
        settings = {
            "dtype": self.dtype,
            "values": self.values,
            "seed": self.seed,
            "layout": self.draw(layouts),
        } | changed
        floating = settings["dtype"].is_floating_point
        requires_grad = floating and (self.draw(integers(0, 3)) > 0 if grad is None else grad)
        return Made(shape, requires_grad=requires_grad, **settings)

    def maybe(self, *shape: int, **changed: Any) -> Made | None:
        """The same, or None."""
        return self(*shape, **changed) if self.draw(booleans()) else None


def _sizes(draw: Draw, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(lists(sizes, min_size=low, max_size=high)))


def _options(draw: Draw, options: Options) -> Arguments:
    """Draw some of the keywords; those left out have their defaults."""
    if not options:
        return {}
    names = draw(sets(sampled_from(sorted(options)), max_size=len(options)))
    return {name: draw(sampled_from(options[name])) for name in sorted(names)}


def _elementwise(draw: Draw) -> Arguments:
    return {"input": _Tensors(draw)(*_sizes(draw, 0, 4))}


def _over_dim(draw: Draw) -> Arguments:
    shape = _sizes(draw, 0, 4)
    dim = draw(integers(-max(len(shape), 1), max(len(shape) - 1, 0)))
    return {"input": _Tensors(draw)(*shape), "dim": dim}


def _linear(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    i, o = draw(sizes), draw(sizes)
    return {
        "input": made(*_sizes(draw, 0, 2), i),
        "weight": made(*draw(sampled_from(((o, i),) * 5 + ((i,),)))),
        "bias": made.maybe(o),
    }


def _labels(made: _Tensors, *shape: int, classes: int) -> Made:
    """Class indices, one call in four with some that are no class, or ignored."""
    odd = made.draw(sampled_from((None,) * 6 + (-1, 255, -100, 2, classes)))
    dtype = made.draw(sampled_from((torch.int64,) * 6 + (torch.uint8, torch.int32)))
    return made(*shape, values="labels", classes=classes, odd=odd, dtype=dtype)


def _class_loss(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    classes = draw(sampled_from((3, 10, 1, 2, 0)))
    batch = _sizes(draw, 0, 3)
    return {
        "input": made(*batch[:1], classes, *batch[1:]),
        "target": _labels(made, *batch, classes=classes),
        "weight": made.maybe(classes, grad=draw(integers(0, 9)) == 0),
    }


def _cross_entropy(draw: Draw) -> Arguments:
    arguments = _class_loss(draw)
    if draw(integers(0, 3)) == 0:
        input = arguments["input"]
        arguments["target"] = _Tensors(draw)(*input.shape, dtype=input.dtype, values="probability")
    return arguments


def _linear_cross_entropy(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    classes, features = draw(sampled_from((3, 10, 1, 2, 0))), draw(sizes)
    batch = _sizes(draw, 0, 1) if draw(booleans()) else (draw(sizes),)
    trailing = draw(sampled_from(((),) * 5 + ((2,),)))
    arguments = {
        "input": made(*batch, features),
        "linear_weight": made(classes, *trailing, features),
        "target": _labels(made, *batch, *trailing, classes=classes),
        "linear_bias": made.maybe(classes, *trailing),
        "weight": made.maybe(classes, grad=draw(integers(0, 9)) == 0),
    }
    if draw(integers(0, 5)) == 0:
        arguments["target"] = made(*batch, classes, *trailing, values="probability")
    return arguments


def _pointwise_loss(values: str | None, *weights: str) -> Callable[[Draw], Arguments]:
    def arguments(draw: Draw) -> Arguments:
        made = _Tensors(draw)
        if values and draw(integers(0, 3)):
            made.values = values
        shape = _sizes(draw, 0, 3)
        broadcast = [shape, shape, shape[1:], tuple(1 for _ in shape)]
        rarely = {"grad": draw(integers(0, 9)) == 0}
        return {
            "input": made(*shape),
            "target": made(*shape),
        } | {
            name: made(*draw(sampled_from(broadcast)), **rarely)
            for name in weights
            if draw(booleans())
        }

    return arguments


def _batch_norm(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    channels = draw(sizes)
    never = {"grad": False}
    tracked = draw(integers(0, 3)) > 0
    return {
        "input": made(draw(sizes), channels, *_sizes(draw, 0, 2)),
        "running_mean": made(channels, **never) if tracked else None,
        "running_var": made(channels, values="unit", **never) if tracked else None,
        "weight": made.maybe(channels),
        "bias": made.maybe(channels),
        "training": draw(booleans()),
    }


def _convolution(dims: int, draw: Draw) -> Arguments:
    made = _Tensors(draw)
    groups = draw(sampled_from((1, 1, 1, 2, 3)))
    channels, outputs = draw(sizes), draw(sizes)
    kernel = tuple(draw(integers(1, 3)) for _ in range(dims))
    image = tuple(draw(integers(2, 6)) for _ in range(dims))
    batch = (draw(sizes),) if draw(integers(0, 4)) else ()
    return {
        "input": made(*batch, channels * groups, *image),
        "weight": made(outputs * groups, channels, *kernel),
        "bias": made.maybe(outputs * groups),
        "groups": groups,
    }


def _batch_norm_relu_conv(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    groups = draw(sampled_from((1, 1, 1, 2)))
    channels = draw(sizes) * groups
    kernel = tuple(draw(integers(1, 3)) for _ in range(2))
    image = tuple(draw(integers(2, 6)) for _ in range(2))
    never = {"grad": False}
    tracked = draw(integers(0, 3)) > 0
    batch = draw(sizes)
    return {
        "input": made(batch, channels, *image),
        "running_mean": made(channels, **never) if tracked else None,
        "running_var": made(channels, values="unit", **never) if tracked else None,
        "weight": made.maybe(channels),
        "bias": made.maybe(channels),
        "conv_weight": made(draw(sizes) * groups, channels // groups, *kernel),
        "conv_bias": None,
        "residual": made.maybe(batch, channels, *image),
        "training": draw(booleans()),
        "groups": groups,
    }


def _pooling(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    batch = (draw(sizes),) if draw(integers(0, 4)) else ()
    image = draw(integers(2, 6)), draw(integers(2, 6))
    return {
        "input": made(*batch, draw(sizes), *image),
        "kernel_size": draw(sampled_from((2, 3, 1, (2, 1), (1, 3), [2, 2], (2,)))),
    }


def _adaptive_pooling(draw: Draw) -> Arguments:
    sizes_ = (1, 2, 3, 5, (2, 1), (None, 4), (3, None), [2, 2], (6, 7), (0, 2), 0)
    arguments = _pooling(draw)
    arguments["output_size"] = draw(sampled_from(sizes_))
    del arguments["kernel_size"]
    return arguments


def _layer_norm(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    shape = _sizes(draw, 1, 2)
    return {
        "input": made(*_sizes(draw, 0, 2), *shape),
        "normalized_shape": draw(sampled_from((shape, list(shape), torch.Size(shape)))),
        "weight": made.maybe(*shape),
        "bias": made.maybe(*shape),
    }


def _group_norm(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    groups = draw(sampled_from((1, 2, 3)))
    channels = draw(sizes) * groups
    return {
        "input": made(draw(sizes), channels, *_sizes(draw, 0, 2)),
        "num_groups": groups,
        "weight": made.maybe(channels),
        "bias": made.maybe(channels),
    }


def _embedding(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    rows = draw(sampled_from((5, 10, 1, 2, 0)))
    return {
        "input": _labels(made, *_sizes(draw, 0, 3), classes=rows),
        "weight": made(rows, draw(sizes)),
    }


def _attention(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    queries, keys, features, width = (draw(sizes) for _ in range(4))
    if draw(booleans()):
        width = features
    batch = _sizes(draw, 0, 2)
    query_batch = batch
    options: Arguments = {}
    if len(batch) > 1 and draw(integers(0, 3)) == 0:
        query_batch = (*batch[:-1], batch[-1] * 2)
        options["enable_gqa"] = True
    elif batch and draw(integers(0, 5)) == 0:
        query_batch = (1, *batch[1:])
    mask = draw(sampled_from((None, None, "float", "bool")))
    if mask:
        lead = draw(sampled_from(((), query_batch, tuple(1 for _ in query_batch))))
        shape = (*lead, draw(sampled_from((queries, queries, 1))), keys)
        kind = {} if mask == "float" else {"dtype": torch.bool, "values": "mask"}
        options["attn_mask"] = made(*shape, **kind)
    return {
        "query": made(*query_batch, queries, features),
        "key": made(*batch, keys, features),
        "value": made(*batch, keys, width),
    } | options


def _multi_head_attention(draw: Draw) -> Arguments:
    made = _Tensors(draw)
    heads, head_size = draw(sampled_from((1, 2, 3))), draw(sampled_from((1, 2, 3)))
    e = heads * head_size
    length, keys = draw(sizes), draw(sizes)
    batch = (draw(sizes),) if draw(integers(0, 3)) else ()
    separate = draw(integers(0, 3)) == 0
    e_key, e_value = (draw(sizes), draw(sizes)) if separate else (e, e)
    more = draw(integers(0, 3)) == 0
    arguments: Arguments = {
        "query": made(length, *batch, e),
        "key": made(keys, *batch, e_key),
        "value": made(keys, *batch, e_value),
        "embed_dim_to_check": e,
        "num_heads": heads,
        "in_proj_weight": None if separate else made(3 * e, e),
        "in_proj_bias": made.maybe(3 * e),
        "bias_k": made(1, 1, e) if more else None,
        "bias_v": made(1, 1, e) if more else None,
        "add_zero_attn": draw(booleans()),
        "dropout_p": draw(sampled_from((0.0, 0.0, 0.5, 1.0))),
        "out_proj_weight": made(e, e),
        "out_proj_bias": made.maybe(e),
    }
    if separate:
        arguments |= {
            "use_separate_proj_weight": True,
            "q_proj_weight": made(e, e),
            "k_proj_weight": made(e, e_key),
            "v_proj_weight": made(e, e_value),
        }
    kind = {"dtype": torch.bool, "values": "mask"} if draw(booleans()) else {"grad": False}
    if draw(integers(0, 2)) == 0:
        many = ((len(batch) and batch[0]) or 1) * heads
        lead = draw(sampled_from(((), (many,))))
        arguments["attn_mask"] = made(*lead, length, keys, **kind)
        arguments["is_causal"] = draw(booleans())
    if draw(integers(0, 2)) == 0:
        arguments["key_padding_mask"] = made(*batch, keys, **kind)
    if draw(integers(0, 9)) == 0:
        many = ((len(batch) and batch[0]) or 1) * heads
        arguments["static_k"] = made(many, keys, head_size)
        arguments["static_v"] = made(many, keys, head_size)
    return arguments


INPLACE: Options = {"inplace": (False, True)}
DTYPES = (None, torch.float64, torch.float32, torch.bfloat16)
EPS: Options = {"eps": (1e-5, 1e-3, 0.5)}
IGNORED: Options = {"ignore_index": (-100, 0, 2, -1, 255)}
WINDOWS: Options = {
    "stride": (1, 2, 3, (2,), [1, 2], (2, 1)),
    "padding": (0, 1, (1,), (1, 0), [0, 1]),
}
CONVOLUTION: Options = WINDOWS | {
    "padding": (*WINDOWS["padding"], "same", "valid"),
    "dilation": (1, 2, (2,), [1, 2]),
}
LINE_WINDOWS: Options = {"stride": (1, 2, 3, (2,), [3]), "padding": (0, 1, 2, (1,), [2])}
POOL_WINDOWS: Options = WINDOWS | {"stride": (*WINDOWS["stride"], None, [])}

# Op, how its arguments are drawn, and the values of its other keywords.
_TABLE: dict[str, tuple[Callable[[Draw], Arguments], Options]] = {
    **dict.fromkeys(("relu", "relu6", "silu", "hardswish", "hardsigmoid"), (_elementwise, INPLACE)),
    **dict.fromkeys(("sigmoid", "tanh", "log"), (_elementwise, {})),
    "leaky_relu": (_elementwise, INPLACE | {"negative_slope": (0.01, 0.0, 1, -0.5, 1e30)}),
    "elu": (_elementwise, INPLACE | {"alpha": (1.0, 0.0, 2, -0.5, 1e30)}),
    "gelu": (_elementwise, {"approximate": ("none", "tanh")}),
    "softplus": (_elementwise, {"beta": (1, 0.5, 3.0, -1.0), "threshold": (20, 1, 0.0, -2)}),
    "dropout": (_elementwise, INPLACE | {"p": (0.5, 0.0, 1.0, 0.1), "training": (True, False)}),
    **dict.fromkeys(
        ("softmax", "log_softmax"),
        (_over_dim, {"dtype": DTYPES, "dim": (None,), "_stacklevel": (3,)}),
    ),
    "linear": (_linear, {}),
    "nll_loss": (_class_loss, REDUCTION | IGNORED),
    "cross_entropy": (_cross_entropy, REDUCTION | IGNORED | {"label_smoothing": (0.0, 0.1, 1.0)}),
    "linear_cross_entropy": (
        _linear_cross_entropy,
        {"reduction": ("mean", "sum", "none"), "options": (None,)}
        | IGNORED
        | {"label_smoothing": (0.0, 0.1, 1.0)},
    ),
    "mse_loss": (_pointwise_loss(None, "weight"), REDUCTION),
    "binary_cross_entropy": (_pointwise_loss("probability", "weight"), REDUCTION),
    "binary_cross_entropy_with_logits": (
        _pointwise_loss(None, "weight", "pos_weight"),
        REDUCTION,
    ),
    "batch_norm": (_batch_norm, EPS | {"momentum": (0.1, 0.0, 1.0, 0.5)}),
    "layer_norm": (_layer_norm, EPS),
    "group_norm": (_group_norm, EPS),
    "conv1d": (
        partial(_convolution, 1),
        LINE_WINDOWS
        | {
            "padding": (*LINE_WINDOWS["padding"], "same", "valid"),
            "dilation": (1, 2, (2,), [1]),
        },
    ),
    "conv2d": (partial(_convolution, 2), CONVOLUTION),
    "linear_relu": (_linear, {}),
    "conv2d_relu": (partial(_convolution, 2), CONVOLUTION),
    "batch_norm_relu_conv2d": (
        _batch_norm_relu_conv,
        EPS | CONVOLUTION | {"momentum": (0.1, 0.0, 1.0, 0.5), "return_activation": (True, False)},
    ),
    "max_pool2d": (
        _pooling,
        POOL_WINDOWS
        | {"dilation": (1, 2, (1, 2)), "ceil_mode": (False, True), "return_indices": (False, True)},
    ),
    "avg_pool2d": (
        _pooling,
        POOL_WINDOWS
        | {
            "ceil_mode": (False, True),
            "count_include_pad": (False, True),
            "divisor_override": (None, 1, 3, -2),
        },
    ),
    "adaptive_avg_pool2d": (_adaptive_pooling, {}),
    "embedding": (
        _embedding,
        {
            "padding_idx": (None, 0, -1),
            "max_norm": (None, 1.0, 0.1),
            "norm_type": (2.0, 1.0),
            "scale_grad_by_freq": (False, True),
            "sparse": (False, True),
        },
    ),
    "scaled_dot_product_attention": (
        _attention,
        {"dropout_p": (0.0, 0.0, 0.5, 1.0), "is_causal": (False, True), "scale": (None, 0.5)},
    ),
    "multi_head_attention_forward": (
        _multi_head_attention,
        {
            "training": (True, False),
            "need_weights": (True, False),
            "average_attn_weights": (True, False),
        },
    ),
}

# What is wrong for a setting of this name.
_WRONG: Options = {
    "dim": (-9, 9),
    "p": (-0.1, 1.5),
    "dropout_p": (-0.1, 1.5),
    "label_smoothing": (-0.1, 1.5),
    "eps": (0.0, -1e-5),
    "approximate": ("erf",),
    "kernel_size": (0, -1, 7, (2, 2, 2)),
    "stride": (0, -1, (1, 1, 1)),
    "padding": (-1, 3, "full", (1, 1, 1)),
    "dilation": (0, -1, (1, 1, 1)),
    "groups": (0, -1, 5),
    "divisor_override": (0,),
    "output_size": (-1, (2,), (2, 2, 2), ()),
    "normalized_shape": ((), (7,), 3),
    "num_groups": (0, -1, 7),
    "num_heads": (5, -1),
    "embed_dim_to_check": (5,),
    "padding_idx": (12, -12),
    "reduction": ("avg",),
}


def _can_be_wrong(name: str, value: Any) -> bool:
    return isinstance(value, Made) or name in _WRONG


@st.composite
def _calls(draw: Draw, arguments: Callable[[Draw], Arguments], options: Options) -> Arguments:
    call = arguments(draw) | _options(draw, options)
    if draw(integers(0, 2)) == 0:  # one mistake: of two, which is reported is a matter of taste
        name = draw(sampled_from([k for k, v in call.items() if _can_be_wrong(k, v)]))
        wrong = sampled_from(_WRONG[name]) if name in _WRONG else mistakes(call[name])
        call[name] = draw(wrong)
    return call


CALLS: dict[str, st.SearchStrategy[Arguments]] = {
    op: _calls(arguments, options) for op, (arguments, options) in _TABLE.items()
}


def _reaches_input(call: Arguments) -> bool:
    """Whether each window holds an element: else torch.nn writes outside of the gradient."""
    return not isinstance(call["input"], Made) or 1 not in call["input"].shape[-2:]


CALLS["max_pool2d"] = CALLS["max_pool2d"].filter(_reaches_input)
