"""Wrong uses of every op: what torch.nn refuses, and what our refusal has to mention."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, ones, zeros


@dataclass(frozen=True)
class BadCall:
    """One call that torch.nn refuses.

    Attributes:
        op: Name in ``manual_ops.functional``.
        mistake: What is wrong.
        arguments: By parameter name.
        mentions: Words and numbers that the message must hold: the argument, expected and found.
    """

    op: str
    mistake: str
    arguments: Mapping[str, Any]
    mentions: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.op}-{self.mistake}"


def indices(*values: int) -> Tensor:
    return torch.tensor(values)


def _elementwise() -> list[BadCall]:
    return [
        *(
            BadCall(op, "no_tensor", {"input": [1.0]}, ("input", "tensor", "list"))
            for op in ("relu", "leaky_relu", "softplus", "log")
        ),
        *(
            BadCall(op, "integer", {"input": indices(1, 2)}, ("input", "float", "int64"))
            for op in ("leaky_relu", "softplus")
        ),
        *(
            BadCall(op, f"dim_{dim}", {"input": zeros(3, 4), "dim": dim}, ("dim", "-2", str(dim)))
            for op in ("softmax", "log_softmax")
            for dim in (2, -3)
        ),
        *(
            BadCall("dropout", f"p_{p}", {"input": zeros(3), "p": p}, ("p", "0", "1", str(p)))
            for p in (-0.5, 1.5)
        ),
        BadCall(
            "dropout", "p_in_eval", {"input": zeros(3), "p": 1.5, "training": False}, ("p", "1.5")
        ),
    ]


def _linear() -> list[BadCall]:
    x, w = zeros(3, 4), zeros(2, 4)
    return [
        BadCall("linear", "features", {"input": x, "weight": zeros(2, 5)}, ("input", "5", "4")),
        BadCall("linear", "bias", {"input": x, "weight": w, "bias": zeros(3)}, ("bias", "2", "3")),
        BadCall(
            "linear",
            "dtype",
            {"input": x, "weight": w.double()},
            ("weight", "float32", "float64"),
        ),
        BadCall("linear", "scalar", {"input": zeros(()), "weight": w}, ("input", "dim")),
    ]


def _fused() -> list[BadCall]:
    x, w, norm = zeros(3, 2, 4, 4), zeros(2, 2, 3, 3), {"weight": None, "bias": None}
    running = {"running_mean": zeros(2), "running_var": ones(2)}
    call = {"input": x} | running | norm | {"conv_weight": w, "training": True}
    return [
        *(replace(call, op="linear_relu") for call in _linear()),
        *(replace(call, op="conv2d_relu") for call in _convolutions() if call.op == "conv2d"),
        *(
            BadCall("batch_norm_relu_conv2d", mistake, call | changed, mentions)
            for mistake, changed, mentions in (
                ("vector", {"input": zeros(2)}, ("input", "4", "(2,)")),
                ("kernel", {"conv_weight": zeros(2, 2, 5, 5)}, ("kernel", "5, 5")),
                ("channels", {"conv_weight": zeros(2, 3, 3, 3)}, ("weight", "2, 3, 3, 3")),
                ("residual", {"residual": zeros(3, 3, 4, 4)}, ("residual", "3, 2", "3, 3")),
                ("norm_weight", {"weight": ones(3)}, ("weight", "2", "3")),
                ("one_value", {"input": zeros(1, 2, 1, 1)}, ("more than 1 value", "1, 2, 1, 1")),
                ("eps", {"eps": 0.0}, ("eps", "0.0")),
                ("statistics", {"training": False, "running_mean": None}, ("running_mean",)),
                ("padding", {"padding": "full"}, ("padding", "full")),
            )
        ),
    ]


def _class_losses() -> list[BadCall]:
    x = zeros(2, 4)
    label = {
        "label_high": ({"target": indices(0, 7)}, ("target", "7", "4")),
        "label_negative": ({"target": indices(0, -1)}, ("target", "-1", "4")),
        "label_high_in_image": (
            {"input": zeros(2, 4, 3), "target": torch.full((2, 3), 7)},
            ("target", "7", "4"),
        ),
        "batch": ({"target": indices(0, 0, 0)}, ("target", "2", "3")),
        "image_size": (
            {"input": zeros(2, 4, 3), "target": torch.zeros(2, 5, dtype=torch.long)},
            ("target", "3", "5"),
        ),
        "float_target": ({"target": zeros(2)}, ("target", "float32")),
        "weight": ({"target": indices(0, 0), "weight": zeros(5)}, ("weight", "4", "5")),
        "reduction": ({"target": indices(0, 0), "reduction": "avg"}, ("reduction", "avg")),
        "weight_requires_grad": (
            {"target": indices(0, 0), "weight": ones(4, requires_grad=True)},
            ("weight", "not differentiable"),
        ),
    }
    cross_entropy = {
        "label_high_smoothed": (
            {"target": indices(0, 7), "label_smoothing": 0.1},
            ("target", "7", "4"),
        ),
        "probabilities": ({"target": zeros(2, 5)}, ("target", "4", "5")),
        "label_smoothing": (
            {"target": indices(0, 0), "label_smoothing": 1.5},
            ("label_smoothing", "0", "1", "1.5"),
        ),
        "integer_probabilities": (
            {"target": torch.zeros(2, 4, dtype=torch.long)},
            ("target", "int64"),
        ),
        "ignore_index": ({"target": x, "ignore_index": 1}, ("ignore_index",)),
    }
    return [
        BadCall(op, mistake, {"input": x} | arguments, mentions)
        for op, table in {
            "nll_loss": label
            | {"scalar": ({"input": zeros(()), "target": torch.tensor(0)}, ("input", "dim"))},
            "cross_entropy": label | cross_entropy,
        }.items()
        for mistake, (arguments, mentions) in table.items()
    ]


def _linear_cross_entropy() -> list[BadCall]:
    call = {"input": zeros(2, 3), "linear_weight": zeros(4, 3), "target": indices(0, 0)}
    return [
        BadCall("linear_cross_entropy", mistake, call | arguments, mentions)
        for mistake, arguments, mentions in (
            ("label_high", {"target": indices(0, 7)}, ("target", "7", "4")),
            ("label_negative", {"target": indices(0, -1)}, ("target", "-1", "4")),
            ("batch", {"target": indices(0, 0, 0)}, ("target", "2", "3")),
            ("float_target", {"target": zeros(2)}, ("target", "float32")),
            ("dims", {"input": zeros(1, 2, 3)}, ("input", "1, 2, 3")),
            ("vector", {"linear_weight": zeros(3)}, ("linear_weight", "(3,)")),
            ("features", {"input": zeros(2, 5)}, ("input", "linear_weight", "5", "3")),
            ("bias", {"linear_bias": zeros(3)}, ("linear_bias", "4", "3")),
            ("unbatched", {"input": zeros(3), "linear_weight": zeros(4, 2, 3)}, ("input", "N")),
            ("weight", {"weight": zeros(5)}, ("weight", "4", "5")),
            ("weight_requires_grad", {"weight": ones(4, requires_grad=True)}, ("weight",)),
            ("reduction", {"reduction": "avg"}, ("reduction", "avg")),
            ("label_smoothing", {"label_smoothing": 1.5}, ("label_smoothing", "1.5")),
            ("ignore_index", {"target": zeros(2, 4), "ignore_index": 1}, ("ignore_index",)),
            ("dtype", {"linear_weight": zeros(4, 3).double()}, ("linear_weight", "float64")),
        )
    ]


def _elementwise_losses() -> list[BadCall]:
    half = ones(2, 3) / 2
    shape = {"input": half, "target": zeros(2, 4)}
    return [
        *(
            BadCall(op, "shape", shape, ("target", "2, 3", "2, 4"))
            for op in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")
        ),
        *(
            BadCall(
                op,
                "reduction",
                {"input": half, "target": half, "reduction": "avg"},
                ("reduction", "avg"),
            )
            for op in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")
        ),
        BadCall(
            "binary_cross_entropy",
            "probability",
            {"input": half + 2, "target": half},
            ("input", "0", "1"),
        ),
        BadCall(
            "binary_cross_entropy",
            "target",
            {"input": half, "target": half + 2},
            ("target", "0", "1"),
        ),
        *(
            BadCall(
                op,
                "weight",
                {"input": half, "target": half, "weight": zeros(4)},
                ("weight", "4", "3"),
            )
            for op in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")
        ),
        *(
            BadCall(
                op,
                f"{weight}_requires_grad",
                {"input": half, "target": half, weight: ones(2, 3, requires_grad=True)},
                (weight, "not differentiable"),
            )
            for op, weight in (
                ("binary_cross_entropy", "weight"),
                ("binary_cross_entropy_with_logits", "weight"),
                ("binary_cross_entropy_with_logits", "pos_weight"),
            )
        ),
        BadCall(
            "binary_cross_entropy_with_logits",
            "pos_weight",
            {"input": half, "target": half, "pos_weight": zeros(4)},
            ("pos_weight", "4", "3"),
        ),
    ]


def _batch_norm() -> list[BadCall]:
    absent = {"running_mean": None, "running_var": None}
    statistics = {"running_mean": zeros(3), "running_var": ones(3)}
    x, train = zeros(2, 3), {"training": True}
    return [
        BadCall(
            "batch_norm",
            mistake,
            {"input": x} | arguments,
            mentions,
        )
        for mistake, arguments, mentions in (
            ("one_value", {"input": zeros(1, 3)} | absent | train, ("input", "1", "1, 3")),
            (
                "one_value_image",
                {"input": zeros(1, 3, 1, 1)} | absent | train,
                ("input", "1", "1, 3, 1, 1"),
            ),
            ("no_statistics", absent, ("running_mean",)),
            ("weight", {"weight": zeros(4)} | absent | train, ("weight", "3", "4")),
            ("bias", {"weight": zeros(3), "bias": zeros(4)} | absent | train, ("bias", "3", "4")),
            ("mean", statistics | {"running_mean": zeros(4)}, ("running_mean", "3", "4")),
            ("variance", statistics | {"running_var": zeros(4)}, ("running_var", "3", "4")),
            ("eps", {"eps": 0.0} | absent | train, ("eps", "positive", "0.0")),
            ("eps_in_eval", {"eps": -1.0} | statistics, ("eps", "-1.0")),
            ("vector", {"input": zeros(3)} | statistics, ()),
            ("one_statistic", absent | {"running_var": ones(3)} | train, ("running_mean", "both")),
        )
    ]


def _convolutions() -> list[BadCall]:
    calls = []
    for op, size in (("conv1d", (5,)), ("conv2d", (5, 5))):
        kernel = (3,) * len(size)
        x, w = zeros(2, 3, *size), zeros(4, 3, *kernel)
        calls += [
            BadCall(op, mistake, {"input": x, "weight": w} | arguments, mentions)
            for mistake, arguments, mentions in (
                ("channels", {"weight": zeros(4, 2, *kernel)}, ("input", "2", "3")),
                ("bias", {"bias": zeros(3)}, ("bias", "4", "3")),
                ("groups", {"groups": 3, "weight": zeros(4, 1, *kernel)}, ("groups", "3", "4")),
                ("group_channels", {"groups": 2}, ("groups", "6", "3")),
                ("no_group", {"groups": 0}, ("groups", "positive")),
                ("same_strided", {"stride": 2, "padding": "same"}, ("padding", "same", "stride")),
                ("padding_name", {"padding": "full"}, ("padding", "full")),
                ("kernel_size", {"input": zeros(2, 3, *kernel[1:], 2)}, ("kernel size", "3", "2")),
                ("dimensions", {"input": zeros(2, 3, 1, 1, *size)}, ("input", op)),
                ("stride", {"stride": 0}, ("stride", "positive")),
                ("padding", {"padding": -1}, ("padding", "negative")),
                ("dilation", {"dilation": 0}, ("dilation", "positive")),
                ("stride_length", {"stride": (1, 1, 1)}, ("stride", "[1, 1, 1]")),
                ("dtype", {"weight": w.double()}, ("input", "weight", "float", "double")),
            )
        ]
    return calls


def _pooling() -> list[BadCall]:
    shared = (
        ("padding", {"padding": 2}, ("pad", "kernel", "2")),
        ("negative_padding", {"padding": -1}, ("pad", "-1")),
        ("kernel_size", {"kernel_size": 5}, ("input size", "4", "too small")),
        ("stride", {"stride": 0}, ("stride", "zero")),
        ("kernel_length", {"kernel_size": (2, 2, 2)}, ("kernel_size", "two")),
        ("no_channel", {"input": zeros(1, 0, 4, 4)}, ("input", "3D", "4D", "[1, 0, 4, 4]")),
        ("dimensions", {"input": zeros(4, 4)}, ()),
    )
    own = {
        "max_pool2d": (("dilation", {"dilation": 0}, ("dilation", "greater than zero")),),
        "avg_pool2d": (("divisor", {"divisor_override": 0}, ("divisor", "zero")),),
    }
    return [
        BadCall(op, mistake, {"input": zeros(1, 1, 4, 4), "kernel_size": 2} | arguments, mentions)
        for op, table in own.items()
        for mistake, arguments, mentions in shared + table
    ]


def _attention() -> list[BadCall]:
    x = zeros(2, 2, 3, 4)
    return [
        BadCall(
            "scaled_dot_product_attention",
            mistake,
            {"query": x, "key": x, "value": x} | arguments,
            mentions,
        )
        for mistake, arguments, mentions in (
            ("vector", {"query": zeros(4)}, ("query", "2", "(4,)")),
            ("features", {"key": zeros(2, 2, 3, 5)}, ("key", "query", "4", "5")),
            ("dtype", {"key": x.double()}, ("key", "float32", "float64")),
            ("integer", dict.fromkeys(("query", "key", "value"), x.long()), ("query", "int64")),
            ("batch", {"key": zeros(3, 2, 3, 4)}, ("key", "2", "3")),
            ("two_masks", {"attn_mask": zeros(3, 3), "is_causal": True}, ("attn_mask", "causal")),
            ("mask_shape", {"attn_mask": zeros(3, 5)}, ("attn_mask", "3", "5")),
            ("mask_rows", {"attn_mask": zeros(2, 3)}, ("attn_mask", "(*, L, S)", "(2, 3)")),
            ("mask_dtype", {"attn_mask": zeros(3, 3).long()}, ("attn_mask", "bool", "int64")),
            ("dropout_p", {"dropout_p": 1.5}, ("dropout", "0", "1", "1.5")),
            (
                "groups",
                {"query": zeros(2, 3, 3, 4), "enable_gqa": True},
                ("heads", "key", "3", "2"),
            ),
        )
    ]


def _activations() -> list[BadCall]:
    ops = ("relu6", "elu", "gelu", "silu", "hardswish", "hardsigmoid")
    return [
        *(BadCall(op, "no_tensor", {"input": [1.0]}, ("input", "tensor", "list")) for op in ops),
        *(
            BadCall(op, "integer", {"input": indices(1, 2)}, ("input", "float", "int64"))
            for op in ops
            if op != "relu6"  # which takes integers
        ),
        BadCall(
            "gelu",
            "approximate",
            {"input": zeros(2), "approximate": "erf"},
            ("approximate", "none", "tanh", "erf"),
        ),
    ]


def _row_norms() -> list[BadCall]:
    rows, x = zeros(2, 3), zeros(2, 4, 3)
    integers = torch.zeros(2, 4, dtype=torch.long)
    return [
        *(
            BadCall("layer_norm", mistake, {"input": rows, "normalized_shape": (3,)} | a, mentions)
            for mistake, a, mentions in (
                ("shape", {"normalized_shape": (4,)}, ("input", "normalized_shape", "2, 3", "4")),
                ("no_dims", {"normalized_shape": ()}, ("normalized_shape", "one")),
                ("one_int", {"normalized_shape": 3}, ("int",)),
                ("weight", {"weight": zeros(4)}, ("weight", "3", "4")),
                ("bias", {"bias": zeros(1, 3)}, ("bias", "1, 3", "(3,)")),
                ("integer", {"input": integers, "normalized_shape": (4,)}, ("input", "int64")),
            )
        ),
        *(
            BadCall("group_norm", mistake, {"input": x, "num_groups": 2} | a, mentions)
            for mistake, a, mentions in (
                ("groups", {"num_groups": 3}, ("num_groups", "3", "4")),
                ("negative_groups", {"num_groups": -2}, ("num_groups", "-2")),
                ("no_groups", {"num_groups": 0}, ()),
                ("vector", {"input": zeros(4)}, ("input", "2", "(4,)")),
                ("one_value", {"input": zeros(1, 2)}, ("input", "1", "1, 2")),
                ("weight", {"weight": zeros(3)}, ("weight", "4", "3")),
                ("bias", {"weight": zeros(4), "bias": zeros(5)}, ("bias", "4", "5")),
                ("integer", {"input": integers}, ("input", "int64")),
            )
        ),
    ]


def _adaptive_pooling() -> list[BadCall]:
    return [
        BadCall(
            "adaptive_avg_pool2d",
            mistake,
            {"input": zeros(1, 1, 4, 4), "output_size": 2} | a,
            words,
        )
        for mistake, a, words in (
            ("three_sizes", {"output_size": (2, 2, 2)}, ("output_size", "2")),
            ("one_size", {"output_size": (2,)}, ("output_size", "2")),
            ("four_sizes", {"output_size": (2,) * 4}, ("input", "output_size", "5")),
            ("negative_size", {"output_size": -1}, ("output_size", "-1")),
            ("matrix", {"input": zeros(4, 4), "output_size": 2}, ("input", "3D", "4D", "4, 4")),
            ("no_row", {"input": zeros(1, 1, 0, 4)}, ("input", "1, 1, 0, 4")),
            ("name", {"output_size": "22"}, ("output_size", "str")),
            (
                "integer",
                {"input": torch.zeros(1, 1, 4, 4, dtype=torch.long)},
                ("input", "floating", "int64"),
            ),
        )
    ]


def _embedding() -> list[BadCall]:
    return [
        BadCall("embedding", mistake, {"input": indices(1, 2), "weight": ones(5, 3)} | a, words)
        for mistake, a, words in (
            ("index_high", {"input": indices(1, 7)}, ("input", "weight", "5, 3")),
            ("index_negative", {"input": indices(-1)}, ("input", "weight", "5, 3")),
            ("float", {"input": ones(2)}, ("indices", "int64", "float")),
            ("no_tensor", {"input": [1]}, ("indices", "tensor", "list")),
            ("no_table", {"weight": 2.0}, ("weight", "Tensor", "float")),
            ("vector", {"weight": ones(5)}, ("weight", "2-d")),
            ("padding_idx_high", {"padding_idx": 5}, ("padding_idx", "5")),
            ("padding_idx_low", {"padding_idx": -6}, ("padding_idx", "-6", "5")),
        )
    ]


def _multi_head_attention() -> list[BadCall]:
    x = zeros(3, 2, 4)
    call: dict[str, Any] = {
        "query": x,
        "key": x,
        "value": x,
        "embed_dim_to_check": 4,
        "num_heads": 2,
        "in_proj_weight": zeros(12, 4),
        "in_proj_bias": None,
        "bias_k": None,
        "bias_v": None,
        "add_zero_attn": False,
        "dropout_p": 0.0,
        "out_proj_weight": zeros(4, 4),
        "out_proj_bias": None,
    }
    return [
        BadCall("multi_head_attention_forward", mistake, call | arguments, mentions)
        for mistake, arguments, mentions in (
            ("vector", {"query": zeros(4)}, ("query", "(4,)")),
            ("features", {"query": zeros(3, 2, 5)}, ("query", "4", "5")),
            ("heads", {"num_heads": 3}, ("4", "heads", "3")),
            ("length", {"value": zeros(5, 2, 4)}, ("key", "value", "3", "5")),
            ("mask_shape", {"attn_mask": zeros(3, 5)}, ("attn_mask", "3", "5")),
            ("mask_dtype", {"attn_mask": zeros(3, 3).long()}, ("attn_mask", "bool", "int64")),
            ("padding", {"key_padding_mask": zeros(2, 5)}, ("key_padding_mask", "3")),
            ("hint_alone", {"is_causal": True}, ("attn_mask", "is_causal")),
        )
    ]


BAD_CALLS: tuple[BadCall, ...] = (
    *_elementwise(),
    *_linear(),
    *_fused(),
    *_class_losses(),
    *_linear_cross_entropy(),
    *_elementwise_losses(),
    *_batch_norm(),
    *_convolutions(),
    *_pooling(),
    *_attention(),
    *_multi_head_attention(),
    *_activations(),
    *_row_norms(),
    *_adaptive_pooling(),
    *_embedding(),
)
