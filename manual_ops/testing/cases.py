"""The table of cases: what the checks, the contract tests and the table of conformance run on.

A case names an op of ``manual_ops.functional``, its arguments and what they cover.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_ops.testing.compositions import torch_op
from manual_ops.testing.draws import (
    Draw,
    booleans,
    constant,
    given,
    labels,
    normal,
    probabilities,
    spread,
    uniform,
)


def _hardsigmoid(input: Tensor) -> Tensor:
    return F.relu6(input + 3) / 6


# torch.nn's own gradient of it is of float32 accuracy in float64, and has no derivative.
_BETTER_THAN_TORCH = {"hardsigmoid": _hardsigmoid}


@dataclass(frozen=True)
class OpCase:
    """One call of one op.

    Attributes:
        op: Name in ``manual_ops.functional`` and ``torch.nn.functional``.
        variant: What the case covers.
        arguments: By parameter name; a ``Draw`` stands for a tensor, the rest is passed as it is.
        buffers: Arguments that the op updates in place.
        random: The op draws random numbers; harness calls seed the generator first.
        exempt: Names of ``manual_ops.check.CHECKS`` that do not apply, each with its reason.
    """

    op: str
    variant: str
    arguments: Mapping[str, Any]
    buffers: tuple[str, ...] = ()
    random: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Op and variant."""
        return f"{self.op}-{self.variant}"

    @property
    def differentiable(self) -> tuple[str, ...]:
        """Names of the arguments that gradients are taken of."""
        return tuple(
            name
            for name, value in self.arguments.items()
            if isinstance(value, Draw) and value.differentiable
        )

    @property
    def reference(self) -> Callable[..., Any]:
        """The op of torch that is the measure."""
        return _BETTER_THAN_TORCH.get(self.op) or torch_op(self.op)

    def sample(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
    ) -> dict[str, Any]:
        """Draw the arguments. Equal seeds give equal numbers up to rounding to ``dtype``."""
        generator = torch.Generator().manual_seed(seed)
        sampled = {}
        for name, value in self.arguments.items():
            if isinstance(value, Draw):
                tensor = value.sample(generator)
                value = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            sampled[name] = value
        return sampled


_NOTHING_TO_BROADCAST = "torch.nn gives an empty output the query's shape, without broadcasting"
# tests/test_attention.py has longer sequences.
_FEW_KEYS = "the weights of so few keys are fewer numbers than the inputs, which we save"
_ONE_SAMPLE = "the logits of one sample are fewer numbers than the gradients, which we save"
_RESIDUAL = "the residual is saved in the place of the sum; in a network another op saves it anyway"
_MIXED_WITHOUT_WEIGHT = {
    "autocast": "torch.nn's own backward raises for a low-precision input and a float32 bias alone"
}


def _elementwise() -> list[OpCase]:
    return [
        OpCase("relu", "matrix", {"input": spread(4, 5)}),
        OpCase("relu", "scalar", {"input": spread()}),
        OpCase("leaky_relu", "default", {"input": spread(4, 5)}),
        OpCase("leaky_relu", "slope", {"input": spread(2, 3, 2), "negative_slope": 0.2}),
        OpCase("leaky_relu", "zero_slope", {"input": spread(4, 5), "negative_slope": 0.0}),
        OpCase("leaky_relu", "negative_slope", {"input": spread(4, 5), "negative_slope": -0.5}),
        OpCase("sigmoid", "matrix", {"input": normal(4, 5)}),
        OpCase("tanh", "matrix", {"input": normal(4, 5)}),
        OpCase("log", "matrix", {"input": uniform(4, 5, low=0.3, high=3.0)}),
        OpCase("softplus", "default", {"input": normal(4, 5)}),
        OpCase("softplus", "beta", {"input": normal(4, 5), "beta": 2.5}),
        OpCase(
            "softplus", "threshold", {"input": spread(4, 5), "beta": 2, "threshold": 1.1}
        ),  # beta * input is an odd multiple of 0.25: never at the threshold
    ]


def _softmax() -> list[OpCase]:
    return [
        OpCase(op, variant, arguments)
        for op in ("softmax", "log_softmax")
        for variant, arguments in {
            "last_dim": {"input": normal(3, 4), "dim": -1},
            "first_dim": {"input": normal(3, 4), "dim": 0},
            "middle_dim": {"input": normal(2, 3, 2, 2), "dim": 1},
            "vector": {"input": normal(4), "dim": 0},
            "scalar": {"input": normal(), "dim": 0},
            "dtype": {"input": normal(3, 4), "dim": 1, "dtype": torch.float64},
        }.items()
    ]


def _class_losses() -> list[OpCase]:
    weight = constant(uniform(4, low=0.2, high=2.0))
    target = labels(5, classes=4)
    shared: dict[str, dict[str, Any]] = {
        "mean": {"target": target},
        "sum": {"target": target, "reduction": "sum"},
        "none": {"target": target, "reduction": "none"},
        "weight": {"target": target, "weight": weight},
        "weight_none": {"target": target, "weight": weight, "reduction": "none"},
        "ignore_default": {"target": given([0, -100, 3, 3, -100])},
        "ignore_index": {"target": given([0, 2, 3, 2, 1]), "ignore_index": 2, "weight": weight},
        "ignore_none": {"target": given([0, 2, 3, 2, 1]), "ignore_index": 2, "reduction": "none"},
        "unbatched": {"input": normal(4), "target": given(2)},
        "unbatched_weight": {"input": normal(4), "target": given(2), "weight": weight},
        "image": {"input": normal(2, 4, 2, 3), "target": labels(2, 2, 3, classes=4)},
        "image_none": {
            "input": normal(2, 4, 3),
            "target": labels(2, 3, classes=4),
            "weight": weight,
            "reduction": "none",
        },
    }
    smoothing: dict[str, dict[str, Any]] = {
        "smoothing": {"target": target, "label_smoothing": 0.1},
        "smoothing_weight": {"target": target, "weight": weight, "label_smoothing": 0.3},
        "smoothing_ignore": {
            "target": given([0, 2, 3, 2, 1]),
            "weight": weight,
            "ignore_index": 2,
            "label_smoothing": 0.3,
        },
        "smoothing_sum": {"target": target, "label_smoothing": 0.1, "reduction": "sum"},
        "smoothing_none": {
            "input": normal(2, 4, 3),
            "target": labels(2, 3, classes=4),
            "label_smoothing": 0.1,
            "reduction": "none",
        },
    }
    soft = probabilities(5, 4, dim=1)
    probability: dict[str, dict[str, Any]] = {
        "probabilities": {"target": soft},
        "probabilities_constant": {"target": constant(soft)},
        "probabilities_weight": {"target": soft, "weight": weight},
        "probabilities_sum": {"target": soft, "reduction": "sum"},
        "probabilities_none": {"target": soft, "weight": weight, "reduction": "none"},
        "probabilities_smoothing": {"target": soft, "weight": weight, "label_smoothing": 0.2},
        "probabilities_image": {
            "input": normal(2, 4, 3),
            "target": probabilities(2, 4, 3, dim=1),
        },
        "probabilities_unbatched": {"input": normal(4), "target": probabilities(4, dim=0)},
    }
    raises = {"channels_last": "torch.nn's own backward raises: 'grad_input must be contiguous'"}
    exempt = {("nll_loss", "image"): raises}
    return [
        OpCase(
            op,
            variant,
            {"input": normal(5, 4)} | arguments,
            exempt=exempt.get((op, variant), {}),
        )
        for op, table in {
            "nll_loss": shared,
            "cross_entropy": shared | smoothing | probability,
        }.items()
        for variant, arguments in table.items()
    ]


def _linear_cross_entropy() -> list[OpCase]:
    target, weight = labels(8, classes=6), constant(uniform(6, low=0.2, high=2.0))
    bias: dict[str, Any] = {"linear_bias": normal(6)}
    ignoring: dict[str, Any] = {"target": given([0, 2, 3, 2, 1, 4, 2, 0]), "ignore_index": 2}
    variants: dict[str, dict[str, Any]] = {
        "mean": bias,
        "no_bias": {},
        "sum": {"reduction": "sum"} | bias,
        "none": {"reduction": "none"} | bias,
        "weight": {"weight": weight} | bias,
        "ignore_index": {"weight": weight} | ignoring | bias,
        "ignore_none": {"reduction": "none"} | ignoring,
        "smoothing": {"weight": weight, "label_smoothing": 0.3} | ignoring | bias,
        "smoothing_none": {"reduction": "none", "label_smoothing": 0.1},
        "unbatched": {"input": normal(2), "target": given(3)} | bias,
        "unbatched_none": {"input": normal(2), "target": given(3), "reduction": "none"},
        "probabilities": {"target": probabilities(8, 6, dim=1)} | bias,
        "image": {
            "linear_weight": normal(4, 2, 2),
            "linear_bias": normal(4, 2),
            "target": labels(8, 2, classes=4),
        },
    }
    arguments = {"input": normal(8, 2), "linear_weight": normal(6, 2), "target": target}
    return [
        OpCase(
            "linear_cross_entropy",
            variant,
            arguments | changed,
            exempt={"saved bytes": _ONE_SAMPLE} if "unbatched" in variant else {},
        )
        for variant, changed in variants.items()
    ]


def _elementwise_losses() -> list[OpCase]:
    between = uniform(3, 4, low=0.3, high=0.7)
    inputs = {
        "binary_cross_entropy": between,
        "binary_cross_entropy_with_logits": normal(3, 4),
        "mse_loss": normal(3, 4),
    }
    weight = constant(uniform(3, 4, low=0.2, high=2.0))
    variants: dict[str, dict[str, Any]] = {
        "mean": {"target": between},
        "sum": {"target": between, "reduction": "sum"},
        "none": {"target": between, "reduction": "none"},
        "constant_target": {"target": constant(between)},
        "weight": {"target": between, "weight": weight},
    }
    return [
        *(
            OpCase(op, variant, {"input": draw} | arguments)
            for op, draw in inputs.items()
            for variant, arguments in variants.items()
        ),
        OpCase(
            "binary_cross_entropy",
            "weight_broadcast",
            {"input": between, "target": between, "weight": constant(normal(4))},
        ),
        *(
            OpCase(
                "mse_loss",
                f"weight_{reduction}",
                {
                    "input": normal(3, 4),
                    "target": normal(3, 4),
                    "weight": uniform(3, 4, low=0.2, high=2.0),
                    "reduction": reduction,
                },
            )
            for reduction in ("mean", "none")
        ),
        OpCase(
            "binary_cross_entropy_with_logits",
            "pos_weight",
            {
                "input": normal(3, 4),
                "target": between,
                "pos_weight": constant(uniform(4, low=0.2, high=3.0)),
            },
        ),
        OpCase(
            "binary_cross_entropy_with_logits",
            "weights",
            {
                "input": normal(3, 4),
                "target": between,
                "weight": constant(uniform(3, 1, low=0.2, high=2.0)),
                "pos_weight": constant(uniform(4, low=0.2, high=3.0)),
                "reduction": "none",
            },
        ),
    ]


def _linear() -> list[OpCase]:
    return [
        OpCase(
            "linear", "matrix", {"input": normal(3, 4), "weight": normal(2, 4), "bias": normal(2)}
        ),
        OpCase("linear", "no_bias", {"input": normal(3, 4), "weight": normal(2, 4)}),
        OpCase("linear", "vector", {"input": normal(4), "weight": normal(2, 4), "bias": normal(2)}),
        OpCase(
            "linear",
            "sequence",
            {"input": normal(2, 3, 4), "weight": normal(5, 4), "bias": normal(5)},
        ),
    ]


def _linear_relu() -> list[OpCase]:
    return [replace(case, op="linear_relu") for case in _linear()]


def _conv_relu() -> list[OpCase]:
    kept = ("plain", "stride", "same_even", "dilation", "groups", "no_bias", "unbatched")
    return [
        replace(case, op="conv2d_relu")
        for case in _convolutions()
        if case.op == "conv2d" and case.variant in kept
    ]


def _batch_norm_relu_conv() -> list[OpCase]:
    running = {
        "running_mean": constant(normal(2)),
        "running_var": constant(uniform(2, low=0.5, high=2.0)),
    }
    absent = {"running_mean": None, "running_var": None}
    arguments = {"input": normal(3, 2, 3, 4), "conv_weight": normal(4, 2, 2, 2)}
    plain = {"weight": None, "bias": None}
    affine = {"weight": normal(2), "bias": normal(2)}
    residual, train = {"residual": normal(3, 2, 3, 4)}, {"training": True}
    recomputed = ("train_residual", "train_activation")
    variants: dict[str, dict[str, Any]] = {
        "train": affine | absent | train,
        "train_running": affine | running | train | {"momentum": 0.7, "eps": 0.1},
        "train_residual": affine | absent | train | residual | {"conv_bias": normal(4)},
        "train_activation": plain | absent | train | residual | {"return_activation": True},
        "train_stride": plain | absent | train | {"stride": 2, "padding": 1},
        "train_groups": affine | absent | train | {"groups": 2, "conv_weight": normal(4, 1, 2, 1)},
        "eval": affine | running | residual,
        "eval_activation": plain | running | {"return_activation": True},
    }
    return [
        OpCase(
            "batch_norm_relu_conv2d",
            variant,
            arguments | changed,
            buffers=("running_mean", "running_var") if variant == "train_running" else (),
            exempt={"saved bytes": _RESIDUAL} if variant in recomputed else {},
        )
        for variant, changed in variants.items()
    ]


def _batch_norm() -> list[OpCase]:
    mean, variance = constant(normal(3)), constant(uniform(3, low=0.5, high=2.0))
    running = {"running_mean": mean, "running_var": variance}
    absent = {"running_mean": None, "running_var": None}
    affine = {"weight": normal(3), "bias": normal(3)}
    train = {"training": True}
    updated = ("running_mean", "running_var")
    rows, sequence, images = normal(5, 3), normal(2, 3, 3), normal(2, 3, 2, 2)
    return [
        *(
            OpCase(
                "batch_norm",
                f"train_{variant}",
                {"input": draw} | running | affine | train,
                buffers=updated,
            )
            for variant, draw in {"2d": rows, "3d": sequence, "4d": images}.items()
        ),
        *(
            OpCase("batch_norm", f"eval_{variant}", {"input": draw} | running | affine)
            for variant, draw in {"2d": rows, "3d": sequence, "4d": images}.items()
        ),
        OpCase(
            "batch_norm",
            "train_no_statistics",
            {"input": images} | absent | affine | train,
        ),
        OpCase("batch_norm", "train_no_affine", {"input": rows} | absent | train),
        OpCase("batch_norm", "eval_no_affine", {"input": rows} | running),
        OpCase(
            "batch_norm",
            "weight_only",
            {"input": sequence, "weight": normal(3)} | absent | train,
        ),
        OpCase(
            "batch_norm",
            "bias_only",
            {"input": sequence, "bias": normal(3)} | absent | train,
        ),
        OpCase("batch_norm", "eval_weight_only", {"input": rows, "weight": normal(3)} | running),
        OpCase(
            "batch_norm",
            "eval_bias_only",
            {"input": rows, "bias": normal(3)} | running,
        ),
        OpCase(
            "batch_norm",
            "momentum_eps",
            {"input": rows, "momentum": 0.7, "eps": 0.1} | running | affine | train,
            buffers=updated,
        ),
    ]


def _convolutions() -> list[OpCase]:
    line: dict[str, dict[str, Any]] = {
        "plain": {},
        "stride": {"stride": 2},
        "padding": {"padding": 2},
        "same_odd": {"padding": "same"},
        "same_even": {"padding": "same", "weight": normal(3, 2, 4)},
        "same_dilation": {"padding": "same", "dilation": 2},
        "valid": {"padding": "valid", "stride": (2,)},
        "dilation": {"dilation": 2},
        "all": {"stride": 2, "padding": 1, "dilation": 2},
        "groups": {"groups": 2, "weight": normal(4, 1, 3), "bias": normal(4)},
        "unbatched": {"input": normal(2, 7)},
        "no_bias": {"bias": None},
        "pointwise": {"weight": normal(3, 2, 1)},
        "unused_end": {"stride": 3},  # the last input columns lie in no window
    }
    image: dict[str, dict[str, Any]] = {
        "plain": {},
        "stride": {"stride": 2},
        "stride_tuple": {"stride": (1, 2)},
        "padding": {"padding": 1},
        "padding_tuple": {"padding": (2, 0)},
        "same_odd": {"padding": "same", "weight": normal(3, 2, 3, 1)},
        "same_even": {"padding": "same"},
        "same_dilation": {"padding": "same", "dilation": (2, 1)},
        "valid": {"padding": "valid"},
        "dilation": {"dilation": 2},
        "all": {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        "groups": {"groups": 2, "weight": normal(4, 1, 2, 3), "bias": normal(4)},
        "groups_wide": {
            "groups": 2,
            "input": normal(1, 4, 3, 4),
            "weight": normal(2, 2, 2, 2),
            "bias": normal(2),
            "stride": 2,
            "padding": 1,
        },
        "depthwise": {
            "groups": 3,
            "input": normal(2, 3, 4, 3),
            "weight": normal(3, 1, 2, 2),
            "bias": normal(3),
        },
        "unbatched": {"input": normal(2, 4, 5)},
        "no_bias": {"bias": None},
        "pointwise": {"weight": normal(3, 2, 1, 1)},
        "unused_end": {"input": normal(1, 2, 6, 6), "stride": 3},
    }
    return [
        *(
            OpCase(
                "conv1d",
                variant,
                {"input": normal(2, 2, 7), "weight": normal(3, 2, 3), "bias": normal(3)}
                | arguments,
            )
            for variant, arguments in line.items()
        ),
        *(
            OpCase(
                "conv2d",
                variant,
                {"input": normal(2, 2, 4, 5), "weight": normal(3, 2, 2, 3), "bias": normal(3)}
                | arguments,
            )
            for variant, arguments in image.items()
        ),
    ]


def _pooling() -> list[OpCase]:
    image = {"input": spread(1, 2, 5, 5), "kernel_size": 2}
    maximum: dict[str, dict[str, Any]] = {
        "plain": {},
        "stride": {"stride": 1},
        "kernel_tuple": {"kernel_size": (3, 2), "stride": (2, 1)},
        "padding": {"padding": 1},
        "overlap": {"kernel_size": 3, "stride": 2, "padding": 1},
        "dilation": {"dilation": 2, "stride": 1},
        "ceil_mode": {"ceil_mode": True},
        "all": {
            "kernel_size": (2, 3),
            "stride": (2, 1),
            "padding": (1, 0),
            "dilation": (1, 2),
            "ceil_mode": True,
        },
        "indices": {"return_indices": True, "padding": 1},
        "unbatched": {"input": spread(2, 4, 4)},
        "default_stride_list": {"kernel_size": [2, 2], "stride": []},
    }
    average: dict[str, dict[str, Any]] = {
        "plain": {},
        "stride": {"stride": 1},
        "kernel_tuple": {"kernel_size": (3, 2), "stride": (2, 1)},
        "padding": {"padding": 1},
        "overlap": {"kernel_size": 3, "stride": 2, "padding": 1},
        "exclude_pad": {"padding": 1, "count_include_pad": False},
        "ceil_mode": {"ceil_mode": True},
        "ceil_mode_pad": {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "ceil_mode": True,
            "input": normal(1, 2, 4, 4),
        },
        "ceil_mode_exclude_pad": {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "ceil_mode": True,
            "count_include_pad": False,
            "input": normal(1, 2, 4, 4),
        },
        "divisor": {"divisor_override": 3},
        "unbatched": {"input": normal(2, 4, 4)},
    }
    return [
        OpCase(op, variant, image | arguments)
        for op, table in {"max_pool2d": maximum, "avg_pool2d": average}.items()
        for variant, arguments in table.items()
    ]


def _dropout() -> list[OpCase]:
    return [
        OpCase("dropout", "train", {"input": normal(4, 5), "p": 0.4}, random=True),
        OpCase("dropout", "eval", {"input": normal(4, 5), "training": False}),
        OpCase("dropout", "keep_all", {"input": normal(4, 5), "p": 0.0}),
        OpCase("dropout", "drop_all", {"input": normal(4, 5), "p": 1.0}),
    ]


def _attention() -> list[OpCase]:
    query, key, value = normal(2, 2, 3, 2), normal(2, 2, 4, 2), normal(2, 2, 4, 2)
    same_keys = Draw(lambda g: torch.tensor([[True, False, True, False]]), differentiable=False)
    no_key = Draw(
        lambda g: torch.tensor([[True, False, True], [False] * 3, [True] * 3]),
        differentiable=False,
    )
    # Torch has no fused kernel for these, and saves the weights.
    falls_back = {"value_width", "mask", "matrices", "one_batch_dim", "broadcast", "grouped"}
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "scale": {"scale": -0.7},
        "value_width": {"value": normal(2, 2, 4, 3)},
        "causal": {"is_causal": True},
        "causal_square": {"query": normal(2, 2, 4, 2), "is_causal": True},
        "boolean_mask": {"attn_mask": booleans(2, 1, 3, 4)},
        "key_mask": {"attn_mask": same_keys},
        "no_key": {"key": normal(2, 2, 3, 2), "value": normal(2, 2, 3, 2), "attn_mask": no_key},
        "constant_mask": {"attn_mask": constant(normal(3, 4))},
        "mask": {"attn_mask": normal(2, 3, 4)},
        "matrices": {"query": normal(3, 2), "key": normal(4, 2), "value": normal(4, 3)},
        "one_batch_dim": {
            "query": normal(2, 3, 2),
            "key": normal(2, 4, 2),
            "value": normal(2, 4, 2),
            "attn_mask": normal(2, 1, 4),
        },
        "broadcast": {
            "query": normal(2, 1, 2, 3, 2),
            "key": normal(2, 2, 4, 2),
            "value": normal(2, 1, 4, 2),
            "attn_mask": normal(2, 1, 1, 3, 4),
        },
        "grouped": {
            "query": normal(1, 4, 3, 2),
            "attn_mask": normal(1, 4, 3, 4),
            "key": normal(1, 2, 4, 2),
            "value": normal(1, 2, 4, 2),
            "enable_gqa": True,
        },
        "grouped_causal": {
            "query": normal(1, 4, 3, 2),
            "key": normal(1, 2, 4, 2),
            "value": normal(1, 2, 4, 2),
            "is_causal": True,
            "enable_gqa": True,
        },
    }
    tensors = {"query": query, "key": key, "value": value}
    return [
        *(
            OpCase(
                "scaled_dot_product_attention",
                variant,
                tensors | arguments,
                exempt=({"saved bytes": _FEW_KEYS} if variant in falls_back else {})
                | ({"empty batch": _NOTHING_TO_BROADCAST} if variant == "broadcast" else {}),
            )
            for variant, arguments in variants.items()
        ),
        OpCase(
            "scaled_dot_product_attention",
            "dropout",
            tensors | {"dropout_p": 0.4, "attn_mask": normal(3, 4)},
            random=True,
            exempt={"saved bytes": _FEW_KEYS},
        ),
        OpCase(
            "scaled_dot_product_attention",
            "drop_all",
            tensors | {"dropout_p": 1.0},
            exempt={"saved bytes": _FEW_KEYS},
        ),
    ]


def _activations() -> list[OpCase]:
    wide = spread(7, 8)  # both sides of the kinks at 0, 6, -3 and 3
    return [
        *(OpCase(op, "matrix", {"input": wide}) for op in ("relu6", "hardswish", "hardsigmoid")),
        OpCase("relu6", "scalar", {"input": spread()}),
        OpCase("hardswish", "image", {"input": spread(2, 2, 3, 3)}),
        OpCase("elu", "default", {"input": spread(4, 5)}),
        OpCase("elu", "alpha", {"input": spread(2, 3, 2), "alpha": 0.3}),
        OpCase("elu", "negative_alpha", {"input": spread(4, 5), "alpha": -0.7}),
        OpCase("silu", "matrix", {"input": normal(4, 5)}),
        OpCase("silu", "image", {"input": normal(2, 3, 2, 2)}),
        OpCase("gelu", "exact", {"input": normal(4, 5)}),
        OpCase("gelu", "tanh", {"input": normal(4, 5), "approximate": "tanh"}),
    ]


def _row_norms() -> list[OpCase]:
    layer: dict[str, dict[str, Any]] = {
        "plain": {"weight": normal(4), "bias": normal(4)},
        "vector": {"input": normal(4), "weight": normal(4), "bias": normal(4)},
        "two_dims": {
            "input": normal(2, 3, 4),
            "normalized_shape": [3, 4],
            "weight": normal(3, 4),
            "bias": normal(3, 4),
        },
        "sequence": {"input": normal(2, 3, 4), "weight": normal(4), "bias": normal(4)},
        "image": {"input": normal(1, 2, 3, 4), "weight": normal(4), "bias": normal(4)},
        "no_affine": {"normalized_shape": (4,)},
        "weight_only": {"weight": normal(4)},
        "bias_only": {"bias": normal(4)},
        "eps": {"weight": normal(4), "bias": normal(4), "eps": 0.1},
    }
    group: dict[str, dict[str, Any]] = {
        "plain": {"weight": normal(4), "bias": normal(4)},
        "matrix": {"input": normal(3, 8), "weight": normal(8), "bias": normal(8)},
        "image": {"input": normal(2, 4, 2, 2), "weight": normal(4), "bias": normal(4)},
        "one_group": {"num_groups": 1, "weight": normal(4), "bias": normal(4)},
        "instance": {"num_groups": 4, "weight": normal(4), "bias": normal(4)},
        "no_affine": {},
        "weight_only": {"weight": normal(4)},
        "bias_only": {"bias": normal(4)},
        "eps": {"weight": normal(4), "bias": normal(4), "eps": 0.1},
    }
    return [
        OpCase(
            op,
            variant,
            defaults | arguments,
            exempt=_MIXED_WITHOUT_WEIGHT if variant == "bias_only" else {},
        )
        for op, defaults, table in (
            ("layer_norm", {"input": normal(3, 4), "normalized_shape": (4,)}, layer),
            ("group_norm", {"input": normal(2, 4, 3), "num_groups": 2}, group),
        )
        for variant, arguments in table.items()
    ]


def _adaptive_pooling() -> list[OpCase]:
    sizes = {
        "one": 1,
        "divides": (2, 1),
        "overlap": 3,
        "larger": (6, 9),
        "same": (4, 6),
        "keep": (None, 4),
    }
    return [
        *(
            OpCase("adaptive_avg_pool2d", name, {"input": normal(1, 2, 4, 6), "output_size": size})
            for name, size in sizes.items()
        ),
        OpCase(
            "adaptive_avg_pool2d", "unbatched", {"input": normal(2, 4, 5), "output_size": [2, 2]}
        ),
    ]


def _embedding() -> list[OpCase]:
    # No index is the padding one or occurs twice where that changes the gradient on purpose.
    variants: dict[str, dict[str, Any]] = {
        "vector": {"input": labels(6, classes=5)},
        "matrix": {"input": labels(2, 3, classes=5)},
        "scalar": {"input": given(2)},
        "padding_idx": {"input": given([0, 2, 4, 2]), "padding_idx": 1},
        "negative_padding_idx": {"input": given([0, 2, 3, 2]), "padding_idx": -1},
        "scale_grad_by_freq": {"input": given([3, 0, 4]), "scale_grad_by_freq": True},
    }
    return [
        OpCase("embedding", variant, arguments | {"weight": normal(5, 3)})
        for variant, arguments in variants.items()
    ]


def _multi_head_attention() -> list[OpCase]:
    weight = partial(uniform, low=-0.5, high=0.5)
    call: dict[str, Any] = {
        "query": normal(2, 2, 4),
        "key": normal(3, 2, 4),
        "value": normal(3, 2, 4),
        "embed_dim_to_check": 4,
        "num_heads": 2,
        "in_proj_weight": weight(12, 4),
        "in_proj_bias": weight(12),
        "bias_k": None,
        "bias_v": None,
        "add_zero_attn": False,
        "dropout_p": 0.0,
        "out_proj_weight": weight(4, 4),
        "out_proj_bias": weight(4),
    }
    variants: dict[str, dict[str, Any]] = {
        "plain": {"need_weights": False},
        "weights": {"average_attn_weights": False},
        "masked": {
            "attn_mask": Draw(lambda g: torch.ones(2, 3).triu(1).bool(), differentiable=False),
            "key_padding_mask": Draw(
                lambda g: torch.tensor([[False, False, True], [False] * 3]), differentiable=False
            ),
        },
        "more_keys": {"bias_k": weight(1, 1, 4), "bias_v": weight(1, 1, 4), "add_zero_attn": True},
        "separate": {
            "query": normal(2, 4),
            "key": normal(3, 3),
            "value": normal(3, 2),
            "in_proj_weight": None,
            "use_separate_proj_weight": True,
            "q_proj_weight": weight(4, 4),
            "k_proj_weight": weight(4, 3),
            "v_proj_weight": weight(4, 2),
            "in_proj_bias": None,
            "attn_mask": normal(2, 3),
        },
    }
    return [
        OpCase(
            "multi_head_attention_forward",
            variant,
            call | arguments,
            exempt={} if variant == "plain" else {"saved bytes": _FEW_KEYS},
        )
        for variant, arguments in variants.items()
    ]


CASES: tuple[OpCase, ...] = (
    *_linear(),
    *_elementwise(),
    *_softmax(),
    *_class_losses(),
    *_linear_cross_entropy(),
    *_elementwise_losses(),
    *_batch_norm(),
    *_linear_relu(),
    *_conv_relu(),
    *_batch_norm_relu_conv(),
    *_convolutions(),
    *_pooling(),
    *_dropout(),
    *_attention(),
    *_multi_head_attention(),
    *_activations(),
    *_row_norms(),
    *_adaptive_pooling(),
    *_embedding(),
)


def _empty(op: str, **arguments: Any) -> OpCase:
    return OpCase(op, "empty", arguments)


# Zero samples: compared with torch.nn in values, gradients and buffers; nothing to differentiate.
EMPTY_CASES: tuple[OpCase, ...] = (
    _empty("linear", input=normal(0, 4), weight=normal(2, 4), bias=normal(2)),
    OpCase(
        "linear",
        "no_features",
        {"input": normal(3, 0), "weight": normal(2, 0), "bias": normal(2)},
    ),
    OpCase("softmax", "no_classes", {"input": normal(3, 0), "dim": 1}),
    *(
        _empty(op, input=spread(0, 3))
        for op in ("relu", "leaky_relu", "sigmoid", "tanh", "log", "softplus", "dropout")
    ),
    *(
        _empty(op, input=spread(0, 3))
        for op in ("relu6", "elu", "gelu", "silu", "hardswish", "hardsigmoid")
    ),
    _empty(
        "layer_norm", input=normal(0, 3), normalized_shape=(3,), weight=normal(3), bias=normal(3)
    ),
    _empty("group_norm", input=normal(0, 4, 2), num_groups=2, weight=normal(4), bias=normal(4)),
    _empty("adaptive_avg_pool2d", input=normal(0, 2, 5, 5), output_size=3),
    _empty("embedding", input=labels(0, classes=5), weight=normal(5, 3)),
    *(_empty(op, input=normal(0, 3), dim=1) for op in ("softmax", "log_softmax")),
    *(
        OpCase(op, f"empty_{reduction}", {"input": normal(0, 4), "reduction": reduction} | target)
        for op, target in {
            "nll_loss": {"target": labels(0, classes=4)},
            "cross_entropy": {"target": labels(0, classes=4)},
            "binary_cross_entropy": {"target": normal(0, 4)},
            "binary_cross_entropy_with_logits": {"target": normal(0, 4)},
            "mse_loss": {"target": normal(0, 4)},
        }.items()
        for reduction in ("mean", "sum", "none")
    ),
    *(
        OpCase(
            "linear_cross_entropy",
            variant,
            {"input": normal(n, 2), "linear_weight": normal(5, 2), "target": target},
        )
        for variant, n, target in (
            ("empty", 0, labels(0, classes=5)),
            ("all_ignored", 2, given([-100, -100])),
        )
    ),
    OpCase(
        "nll_loss",
        "all_ignored",
        {"input": normal(2, 4), "target": given([-100, -100])},
    ),
    OpCase("cross_entropy", "all_ignored", {"input": normal(2, 4), "target": given([-100, -100])}),
    OpCase(
        "cross_entropy",
        "empty_smoothing",
        {"input": normal(0, 4), "target": labels(0, classes=4), "label_smoothing": 0.1},
    ),
    OpCase(
        "cross_entropy",
        "empty_probabilities",
        {"input": normal(0, 4), "target": probabilities(0, 4, dim=1)},
    ),
    *(
        OpCase(
            "batch_norm",
            f"empty_{'train' if training else 'eval'}",
            {
                "input": normal(0, 3, 2, 2),
                "running_mean": constant(normal(3)),
                "running_var": constant(uniform(3, low=0.5, high=2.0)),
                "weight": normal(3),
                "bias": normal(3),
                "training": training,
            },
            buffers=("running_mean", "running_var"),
        )
        for training in (True, False)
    ),
    _empty("linear_relu", input=normal(0, 4), weight=normal(2, 4), bias=normal(2)),
    _empty("conv2d_relu", input=normal(0, 2, 4, 5), weight=normal(3, 2, 2, 3), bias=normal(3)),
    _empty(
        "batch_norm_relu_conv2d",
        input=normal(0, 2, 4, 5),
        running_mean=None,
        running_var=None,
        weight=normal(2),
        bias=normal(2),
        conv_weight=normal(3, 2, 2, 3),
        training=True,
    ),
    _empty("conv1d", input=normal(0, 2, 5), weight=normal(3, 2, 3), bias=normal(3)),
    _empty("conv2d", input=normal(0, 2, 4, 5), weight=normal(3, 2, 2, 3), bias=normal(3)),
    _empty(
        "multi_head_attention_forward",
        query=normal(2, 0, 4),
        key=normal(3, 0, 4),
        value=normal(3, 0, 4),
        embed_dim_to_check=4,
        num_heads=2,
        in_proj_weight=normal(12, 4),
        in_proj_bias=normal(12),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=normal(4, 4),
        out_proj_bias=normal(4),
        need_weights=False,
    ),
    _empty(
        "scaled_dot_product_attention",
        query=normal(0, 2, 3, 2),
        key=normal(0, 2, 4, 2),
        value=normal(0, 2, 4, 2),
    ),
    _empty("max_pool2d", input=spread(0, 2, 4, 4), kernel_size=2),
    _empty("avg_pool2d", input=normal(0, 2, 4, 4), kernel_size=2),
)
