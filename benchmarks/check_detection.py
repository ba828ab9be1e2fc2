"""How many small mistakes the gradient check finds, and what it costs, beside gradcheck.

python -m benchmarks.check_detection                      # every op, 200 trials
python -m benchmarks.check_detection --only conv2d relu --trials 20

In each trial one nonzero element of 64, in the gradient of one input, is off by 1 %.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, gradcheck

from benchmarks.measure import geometric_mean
from manual_ops import functional as F
from manual_ops import nn
from manual_ops.check import check

Op = Callable[[Tensor], Any]

ROWS, IMAGE, SEQUENCE = (8, 8), (1, 1, 8, 8), (1, 2, 8, 4)
CONSTANTS = torch.Generator().manual_seed(-1)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=CONSTANTS, dtype=torch.float64)


LABELS = torch.arange(8)
TARGET = _normal(*ROWS).sigmoid()
KEYS = _normal(8, 2, 4)
FUSED_KERNEL = _normal(3, 1, 3, 3)
MULTI_HEAD = nn.MultiheadAttention(4, 2, dtype=torch.float64).requires_grad_(False)


# Shape of the input whose gradient is wrong, 64 elements, and the op as a function of it.
OPS: dict[str, tuple[tuple[int, ...], Op]] = {
    **{
        name: (ROWS, getattr(F, name))
        for name in (
            *("relu", "leaky_relu", "relu6", "elu", "silu", "gelu", "sigmoid", "tanh"),
            *("softplus", "hardswish", "hardsigmoid"),
        )
    },
    "log": (ROWS, lambda x: F.log(x.exp())),
    "linear": (ROWS, partial(F.linear, weight=_normal(4, 8), bias=_normal(4))),
    "softmax": (ROWS, lambda x: F.softmax(x, 1)),
    "log_softmax": (ROWS, lambda x: F.log_softmax(x, 1)),
    "nll_loss": (ROWS, lambda x: F.nll_loss(x, LABELS)),
    "cross_entropy": (ROWS, lambda x: F.cross_entropy(x, LABELS)),
    "linear_cross_entropy": (
        ROWS,
        partial(F.linear_cross_entropy, linear_weight=_normal(8, 8), target=LABELS),
    ),
    "binary_cross_entropy": (ROWS, lambda x: F.binary_cross_entropy(x.sigmoid(), TARGET)),
    "binary_cross_entropy_with_logits": (
        ROWS,
        lambda x: F.binary_cross_entropy_with_logits(x, TARGET),
    ),
    "mse_loss": (ROWS, lambda x: F.mse_loss(x, TARGET)),
    "batch_norm": (ROWS, lambda x: F.batch_norm(x, None, None, training=True)),
    "layer_norm": (ROWS, lambda x: F.layer_norm(x, (8,))),
    "group_norm": (ROWS, lambda x: F.group_norm(x, 2)),
    "linear_relu": (ROWS, partial(F.linear_relu, weight=_normal(4, 8), bias=_normal(4))),
    "conv2d_relu": (IMAGE, partial(F.conv2d_relu, weight=_normal(3, 1, 3, 3))),
    "batch_norm_relu_conv2d": (
        IMAGE,
        lambda x: F.batch_norm_relu_conv2d(x, None, None, None, None, FUSED_KERNEL, training=True),
    ),
    "conv1d": ((2, 4, 8), partial(F.conv1d, weight=_normal(3, 4, 3))),
    "conv2d": (IMAGE, partial(F.conv2d, weight=_normal(3, 1, 3, 3))),
    "max_pool2d": (IMAGE, lambda x: F.max_pool2d(x, 2)),
    "avg_pool2d": (IMAGE, lambda x: F.avg_pool2d(x, 2)),
    "adaptive_avg_pool2d": (IMAGE, lambda x: F.adaptive_avg_pool2d(x, 3)),
    "dropout": (ROWS, partial(F.dropout, p=0.4)),
    "embedding": ((16, 4), lambda weight: F.embedding(LABELS, weight)),
    "scaled_dot_product_attention": (
        SEQUENCE,
        partial(F.scaled_dot_product_attention, key=_normal(*SEQUENCE), value=_normal(*SEQUENCE)),
    ),
    "multi_head_attention_forward": ((8, 2, 4), lambda x: MULTI_HEAD(x, KEYS, KEYS)[0]),
}


class _OneWrong(Function):
    """An op whose gradient is off by 1 % in one element."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, op: Op, index: int) -> Tensor:
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            output: Tensor = op(leaf)
        ctx.kept = leaf, output, index
        return output.detach()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        leaf, output, index = ctx.kept
        (gradient,) = torch.autograd.grad(output, leaf, grad_output, retain_graph=True)
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        gradient.view(-1)[index] *= 1.01
        return gradient, None, None


def one_wrong(op: Op, input: Tensor, trial: int) -> Op:
    """Return ``op`` with a mistake of 1 % in one nonzero element of its gradient."""
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(op(input).square().sum(), input)
    nonzero = gradient.flatten().nonzero().flatten()
    index = int(nonzero[trial % len(nonzero)])
    return lambda x: _OneWrong.apply(x, op, index)


def draw(name: str, trial: int) -> tuple[Tensor, Op]:
    """Return an input of 64 elements, and the op."""
    shape, op = OPS[name]
    generator = torch.Generator().manual_seed(trial)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(), op


def ours(op: Op, input: Tensor) -> bool:
    """Whether the gradient check accepts the op."""
    return check(op, input, only=["gradient"]).ok


def torchs(op: Op, input: Tensor, fast: bool) -> bool:
    """Whether ``gradcheck`` accepts the op, which must draw the same random numbers again."""

    def seeded(input: Tensor) -> Any:
        torch.default_generator.manual_seed(0)
        return op(input)

    return gradcheck(seeded, (input,), fast_mode=fast, raise_exception=False)


CHECKERS: dict[str, Callable[[Op, Tensor], bool]] = {
    "check": ours,
    "gradcheck fast": lambda op, input: torchs(op, input, True),
    "gradcheck slow": lambda op, input: torchs(op, input, False),
}


def caught(name: str, checker: str, trials: int) -> int:
    """Count the wrong ops that a checker refuses."""
    drawn = (draw(name, trial) for trial in range(trials))
    return sum(
        not CHECKERS[checker](one_wrong(op, input, trial), input)
        for trial, (input, op) in enumerate(drawn)
    )


def false_alarms(name: str, trials: int) -> int:
    """Count the inputs on which the gradient check refuses the right op."""
    return sum(not ours(op, input) for input, op in (draw(name, t) for t in range(trials)))


def cost(name: str, pairs: int = 15, calls: int = 5) -> float:
    """Median of the paired ratios of our processor time to that of gradcheck's fast mode."""
    input, op = draw(name, 0)

    def seconds(checker: str) -> float:
        start = time.process_time()
        for _ in range(calls):
            assert CHECKERS[checker](op, input)
        return time.process_time() - start

    ratios = [seconds("check") / seconds("gradcheck fast") for _ in range(pairs)]
    return statistics.median(ratios)


def rows(names: list[str], trials: int) -> Iterator[str]:
    """The lines of the table."""
    yield f"| one element of 64 off by 1 %, caught of {trials} | {' | '.join(CHECKERS)} "
    yield "| false alarms of check | time over fast mode |\n" + "|---" * 6 + "|\n"
    ratios = []
    for name in names:
        found = [str(caught(name, checker, trials)) for checker in CHECKERS]
        ratio = cost(name)
        ratios.append(ratio)
        yield f"| {name} | {' | '.join(found)} | {false_alarms(name, trials)} | {ratio:.2f} |\n"
    yield f"\ngeometric mean of the times {geometric_mean(ratios):.2f}\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=OPS, default=list(OPS), metavar="OP")
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in rows(options.only, options.trials):
        print(line, end="", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)  # gradcheck's, on inputs it finds doubtful
    main()
