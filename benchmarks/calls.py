"""Time of one forward call on tiny tensors over torch.nn's: what a call in Python costs.

python -m benchmarks.calls
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

import manual_ops.nn

CALLS: dict[str, tuple[Callable[[Any], torch.nn.Module], tuple[torch.Tensor, ...]]] = {
    "relu": (lambda nn: nn.ReLU(), (torch.randn(8, 8),)),
    "sigmoid": (lambda nn: nn.Sigmoid(), (torch.randn(8, 8),)),
    "linear": (lambda nn: nn.Linear(8, 8), (torch.randn(8, 8),)),
    "conv2d": (lambda nn: nn.Conv2d(4, 4, 3), (torch.randn(1, 4, 6, 6),)),
    "max_pool2d": (lambda nn: nn.MaxPool2d(2), (torch.randn(1, 4, 6, 6),)),
    "batch_norm": (lambda nn: nn.BatchNorm1d(8), (torch.randn(8, 8),)),
    "layer_norm": (lambda nn: nn.LayerNorm(8), (torch.randn(8, 8),)),
    "dropout": (lambda nn: nn.Dropout(), (torch.randn(8, 8),)),
    "cross_entropy": (lambda nn: nn.CrossEntropyLoss(), (torch.randn(8, 8), torch.arange(8))),
}


def added(name: str, grad: bool, pairs: int = 25, calls: int = 1000) -> tuple[float, float]:
    """Return microseconds of torch.nn's call, and how many ours takes more, as medians."""
    build, (input, *rest) = CALLS[name]
    input = input.clone().requires_grad_(grad)
    timers = [
        Timer("layer(*inputs)", globals={"layer": build(nn), "inputs": (input, *rest)})
        for nn in (manual_ops.nn, torch.nn)
    ]
    with torch.set_grad_enabled(grad):
        times = [[timer.timeit(calls).mean * 1e6 for timer in timers] for _ in range(pairs)]
    return (
        statistics.median(theirs for _, theirs in times),
        statistics.median(ours - theirs for ours, theirs in times),
    )


def main() -> None:
    """Print one line for each layer: torch.nn's time, and what ours adds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="OP", choices=CALLS, default=list(CALLS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'microseconds of a call':24} {'without grad mode':>22} {'with grad mode':>22}")
    for name in args.only:
        pairs = [added(name, grad) for grad in (False, True)]
        columns = [f"{theirs:10.2f} {more:+11.2f}" for theirs, more in pairs]
        print(f"{name:24} " + " ".join(columns), flush=True)


if __name__ == "__main__":
    main()
