"""Time each op's forward plus backward against torch.nn.functional.

python -m benchmarks.ops                    # every op, large and small input
python -m benchmarks.ops --only conv2d relu # these alone
python -m benchmarks.ops --size large --seconds 3
python -m benchmarks.ops --fuse             # ours under manual_ops.fuse()
python -m benchmarks.ops --json ops.json --plot ops.png
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import manual_ops
from benchmarks.measure import compare, keep_memory, saved_bytes
from benchmarks.table import Row, Table, add_options, write
from manual_ops.testing.compositions import torch_op

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row: an op, and what makes its large and its small input."""

    op: str
    large: Callable[[], Inputs]
    small: Callable[[], Inputs]
    label: str = ""

    @property
    def name(self) -> str:
        """Op and label, as printed."""
        return f"{self.op} {self.label}".rstrip()


def _leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def _elementwise(op: str, label: str = "", **settings: Any) -> Case:
    return Case(
        op,
        lambda: {"input": _leaf(64, 64, 32, 32), **settings},
        lambda: {"input": _leaf(64, 512), **settings},
        label,
    )


def _rows(op: str, **settings: Any) -> Case:
    return Case(
        op,
        lambda: {"input": _leaf(1024, 4000), **settings},
        lambda: {"input": _leaf(128, 10), **settings},
    )


def _labels(op: str, **settings: Any) -> Case:
    def inputs(n: int, classes: int) -> Inputs:
        return {"input": _leaf(n, classes), "target": torch.randint(classes, (n,)), **settings}

    label = ", ".join(settings)
    return Case(op, lambda: inputs(1024, 4000), lambda: inputs(128, 10), label)


def _pairs(op: str, logits: bool = True) -> Case:
    def inputs(*shape: int) -> Inputs:
        input = _leaf(*shape) if logits else torch.rand(*shape).requires_grad_()
        return {"input": input, "target": torch.rand(*shape)}

    return Case(op, lambda: inputs(1024, 4000), lambda: inputs(128, 10))


def _probabilities() -> Case:
    def inputs(n: int, classes: int) -> Inputs:
        return {"input": _leaf(n, classes), "target": torch.rand(n, classes).softmax(1)}

    return Case(
        "cross_entropy", lambda: inputs(1024, 4000), lambda: inputs(128, 10), "probabilities"
    )


def _batch_norm(training: bool, channels_last: bool = False) -> Case:
    def inputs(n: int, c: int, size: int) -> Inputs:
        image = torch.randn(n, c, size, size)
        if channels_last:
            image = image.to(memory_format=torch.channels_last)
        return {
            "input": image.requires_grad_(),
            "running_mean": torch.zeros(c),
            "running_var": torch.ones(c),
            "weight": _leaf(c),
            "bias": _leaf(c),
            "training": training,
        }

    label = ("training" if training else "evaluation") + (" channels_last" * channels_last)
    return Case("batch_norm", lambda: inputs(64, 64, 32), lambda: inputs(64, 16, 7), label)


def _conv2d(label: str, image: tuple[int, ...], weight: tuple[int, ...], **settings: Any) -> Case:
    def inputs(n: int) -> Inputs:
        return {
            "input": _leaf(n, *image),
            "weight": _leaf(*weight),
            "bias": _leaf(weight[0]),
            **settings,
        }

    return Case("conv2d", lambda: inputs(128), lambda: inputs(2), label)


def _linear_relu() -> Case:
    return replace(_linear(), op="linear_relu")


def _conv2d_relu() -> Case:
    plain = _conv2d("3x3, 64 to 128", (64, 16, 16), (128, 64, 3, 3), padding=1)
    return replace(plain, op="conv2d_relu")


def _batch_norm_relu_conv2d() -> Case:
    def inputs(n: int, channels: int, size: int) -> Inputs:
        return {
            "input": _leaf(n, channels, size, size),
            "running_mean": torch.zeros(channels),
            "running_var": torch.ones(channels),
            "weight": _leaf(channels),
            "bias": _leaf(channels),
            "conv_weight": _leaf(channels, channels, 3, 3),
            "padding": 1,
            "training": True,
        }

    return Case("batch_norm_relu_conv2d", lambda: inputs(128, 64, 16), lambda: inputs(8, 16, 7))


def _pool(op: str, kernel: int, stride: int, padding: int = 0) -> Case:
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return Case(
        op,
        lambda: {"input": _leaf(64, 64, 32, 32), **settings},
        lambda: {"input": _leaf(8, 16, 14, 14), **settings},
        f"{kernel}/{stride}",
    )


def _adaptive_pool(label: str, size: int, output_size: int) -> Case:
    return Case(
        "adaptive_avg_pool2d",
        lambda: {"input": _leaf(64, 512, size, size), "output_size": output_size},
        lambda: {"input": _leaf(2, 64, size, size), "output_size": output_size},
        label,
    )


def _layer_norm() -> Case:
    def inputs(rows: int, features: int) -> Inputs:
        parameters = {"weight": _leaf(features), "bias": _leaf(features)}
        return {"input": _leaf(rows, features), "normalized_shape": (features,), **parameters}

    return Case("layer_norm", lambda: inputs(8192, 512), lambda: inputs(64, 512))


def _group_norm() -> Case:
    def inputs(n: int, channels: int, size: int) -> Inputs:
        parameters = {"weight": _leaf(channels), "bias": _leaf(channels)}
        return {"input": _leaf(n, channels, size, size), "num_groups": 8, **parameters}

    return Case("group_norm", lambda: inputs(64, 64, 32), lambda: inputs(8, 16, 7))


def _embedding() -> Case:
    def inputs(count: int, rows: int, columns: int) -> Inputs:
        return {"input": torch.randint(rows, (count,)), "weight": _leaf(rows, columns)}

    return Case("embedding", lambda: inputs(16384, 10000, 256), lambda: inputs(64, 100, 64))


def _linear(*, bias: bool = True) -> Case:
    def inputs(n: int, features: int, out: int) -> Inputs:
        return {
            "input": _leaf(n, features),
            "weight": _leaf(out, features),
            "bias": _leaf(out) if bias else None,
        }

    return Case("linear", lambda: inputs(4096, 512, 512), lambda: inputs(64, 512, 10))


def _linear_cross_entropy() -> Case:
    def inputs(n: int, features: int, classes: int) -> Inputs:
        return {
            "input": _leaf(n, features),
            "linear_weight": _leaf(classes, features),
            "target": torch.randint(classes, (n,)),
        }

    return Case(
        "linear_cross_entropy", lambda: inputs(1024, 256, 8000), lambda: inputs(64, 512, 10)
    )


def _attention(**settings: Any) -> Case:
    def inputs(*shape: int) -> Inputs:
        return {name: _leaf(*shape) for name in ("query", "key", "value")} | settings

    return Case(
        "scaled_dot_product_attention",
        lambda: inputs(8, 12, 197, 64),
        lambda: inputs(8, 4, 16, 16),
        ", ".join(settings),
    )


CASES = [
    _linear(),
    _elementwise("relu"),
    _elementwise("leaky_relu"),
    _elementwise("sigmoid"),
    _elementwise("tanh"),
    _elementwise("softplus"),
    _rows("softmax", dim=1),
    _rows("log_softmax", dim=1),
    _labels("nll_loss"),
    _labels("cross_entropy"),
    _labels("cross_entropy", label_smoothing=0.1),
    _probabilities(),
    _linear_cross_entropy(),
    _pairs("binary_cross_entropy", logits=False),
    _pairs("binary_cross_entropy_with_logits"),
    _pairs("mse_loss"),
    _batch_norm(training=True),
    _batch_norm(training=True, channels_last=True),
    _batch_norm(training=False),
    Case(
        "conv1d",
        lambda: {"input": _leaf(64, 32, 1024), "weight": _leaf(64, 32, 5), "padding": 2},
        lambda: {"input": _leaf(4, 8, 64), "weight": _leaf(16, 8, 5), "padding": 2},
    ),
    _conv2d("5x5, 16 to 16", (16, 28, 28), (16, 16, 5, 5), padding=2),
    _conv2d("3x3, 3 to 16", (3, 32, 32), (16, 3, 3, 3), padding=1),
    _conv2d("3x3, 64 to 128", (64, 16, 16), (128, 64, 3, 3), padding=1),
    _conv2d("3x3 stride 2, 64 to 128", (64, 16, 16), (128, 64, 3, 3), padding=1, stride=2),
    _conv2d("1x1, 64 to 256", (64, 16, 16), (256, 64, 1, 1)),
    _conv2d("3x3 depthwise, 64", (64, 16, 16), (64, 1, 3, 3), padding=1, groups=64),
    _linear_relu(),
    _conv2d_relu(),
    _batch_norm_relu_conv2d(),
    _pool("max_pool2d", 2, 2),
    _pool("max_pool2d", 3, 2, 1),
    _pool("avg_pool2d", 2, 2),
    _pool("avg_pool2d", 3, 2, 1),
    _elementwise("dropout", p=0.5),
    _attention(),
    _attention(is_causal=True),
    _elementwise("relu6"),
    _elementwise("elu"),
    _elementwise("silu"),
    _elementwise("gelu"),
    _elementwise("gelu", "tanh", approximate="tanh"),
    _elementwise("hardswish"),
    _elementwise("hardsigmoid"),
    _layer_norm(),
    _group_norm(),
    _adaptive_pool("7 to 1", 7, 1),
    _adaptive_pool("14 to 7", 14, 7),
    _adaptive_pool("13 to 6", 13, 6),
    _embedding(),
]


def measure(case: Case, inputs: Inputs, seconds: float) -> Row:
    """Return the time of forward plus backward, and the bytes saved by ours and by torch."""
    leaves = [t for t in inputs.values() if isinstance(t, Tensor) and t.requires_grad]

    def side(op: Callable[..., Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
        grad_output = torch.randn_like(op(**inputs))

        def step() -> None:
            torch.autograd.grad(op(**inputs), leaves, grad_output)

        return step, lambda: op(**inputs)

    (ours, our_forward), (theirs, their_forward) = map(
        side, (getattr(manual_ops.functional, case.op), torch_op(case.op))
    )
    times = compare(ours, theirs, seconds)
    return Row(case.name, times, saved_bytes(our_forward), saved_bytes(their_forward))


def main() -> None:
    """Print one line for each op and size, and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="OP", help="names of ops; default all")
    parser.add_argument("--size", choices=("large", "small", "both"), default="both")
    parser.add_argument("--fuse", action="store_true", help="formulas through the compiler")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    tables = []
    with manual_ops.fuse(args.fuse):
        for size in ("large", "small") if args.size == "both" else (args.size,):
            tables.append(table := Table(size + ", fused" * args.fuse))
            for case in CASES:
                if not args.only or case.op in args.only:
                    torch.manual_seed(0)
                    table.add(measure(case, getattr(case, size)(), args.seconds))
            table.close()
    options = f"--size {args.size}{' --fuse' * args.fuse} --seconds {args.seconds:g}"
    write(args, f"python -m benchmarks.ops {options}", tables)


if __name__ == "__main__":
    main()
