"""Peak memory of forward plus backward against torch.nn.functional, and the time it takes.

python -m benchmarks.memory
python -m benchmarks.memory --only linear_cross_entropy --seconds 120

Peak: what PyTorch's allocator holds beyond the inputs, at most, as the profiler records it.
"""

import argparse
from collections.abc import Callable
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch.profiler import ProfilerActivity, profile

import manual_ops.functional
from benchmarks.measure import compare

Inputs = dict[str, Any]


def _cross_entropy() -> Inputs:
    return {
        "input": torch.randn(4096, 32000, requires_grad=True),
        "target": torch.randint(32000, (4096,)),
    }


def _linear_cross_entropy() -> Inputs:
    return {
        "input": torch.randn(4096, 768, requires_grad=True),
        "linear_weight": (torch.randn(32000, 768) / 768**0.5).requires_grad_(),
        "target": torch.randint(32000, (4096,)),
    }


CASES: dict[str, Callable[[], Inputs]] = {
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
}


def step(name: str, functional: ModuleType) -> Callable[[], Any]:
    """Return forward plus backward of ``functional``'s op."""
    inputs, op = CASES[name](), getattr(functional, name)
    leaves = [tensor for tensor in inputs.values() if tensor.requires_grad]
    return lambda: torch.autograd.grad(op(**inputs), leaves)


def peak_memory(step: Callable[[], Any]) -> int:
    """Bytes that ``step`` allocates and has not yet freed, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(max(accumulate(change for _, change in changes)))


def main() -> None:
    """Print one line for each op."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, help="default all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=60.0, help="for each line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'':24} {'ours':>8} {'torch.nn':>8}  peak   time (quartiles)")
    for name in args.only or CASES:
        torch.manual_seed(0)
        ours, theirs = (
            step(name, functional) for functional in (manual_ops.functional, torch_functional)
        )
        our_peak, their_peak = peak_memory(ours), peak_memory(theirs)
        times = compare(ours, theirs, args.seconds, pairs=5)
        print(
            f"{name:24} {our_peak / 1e6:5.0f} MB {their_peak / 1e6:5.0f} MB  "
            f"{our_peak / their_peak:.3f}  {times.ratio:4.2f} ({times.low:4.2f}-{times.high:4.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
