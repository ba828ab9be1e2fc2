"""Time the weight gradient of convolutions, alone, against ATen's kernel and the literal formula.

python -m benchmarks.conv_weight_gradient
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import compare, keep_memory
from manual_ops.ops._conv_weight_gradient import _Geometry, _literally, weight_gradient


@dataclass(frozen=True)
class Case:
    """One row: the shapes of input and weight, stride, padding and groups."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 1
    groups: int = 1
    channels_last: bool = False


CASES = [
    Case((64, 64, 16, 16), (128, 64, 3, 3)),
    Case((64, 256, 8, 8), (256, 256, 3, 3)),
    Case((64, 512, 4, 4), (512, 512, 3, 3)),
    Case((64, 64, 16, 16), (128, 64, 3, 3), channels_last=True),
    Case((64, 256, 8, 8), (256, 256, 3, 3), channels_last=True),
    Case((64, 32, 32, 32), (32, 32, 3, 3), channels_last=True),
    Case((64, 32, 16, 16), (32, 32, 3, 3), channels_last=True),
    Case((32, 64, 32, 32), (128, 64, 3, 3), stride=2),
    Case((64, 256, 4, 4), (512, 256, 3, 3), stride=2),
    Case((128, 64, 16, 16), (256, 64, 1, 1), padding=0),
    Case((128, 16, 14, 14), (16, 16, 5, 5), padding=2),
    Case((128, 3, 32, 32), (16, 3, 3, 3)),
    Case((64, 3, 32, 32), (64, 3, 3, 3)),
    Case((128, 1, 28, 28), (16, 1, 5, 5), padding=2),
    Case((64, 64, 16, 16), (64, 1, 3, 3), groups=64),
    Case((64, 32, 1024), (64, 32, 5), padding=2),
]


def measure(case: Case, seconds: float) -> tuple[float, float]:
    """Return the time of ours and of the literal formula, over ATen's."""
    dims = len(case.weight) - 2
    none = [0] * dims
    stride, padding, dilation = ((n,) * dims for n in (case.stride, case.padding, 1))
    geometry = stride, padding, dilation
    input, weight = torch.randn(case.input), torch.randn(case.weight)
    if case.channels_last:
        input, weight = (t.contiguous(memory_format=torch.channels_last) for t in (input, weight))
    output = torch.convolution(input, weight, None, *geometry, False, none, case.groups)
    grad_output = torch.randn_like(output)

    def theirs() -> Tensor:
        which = (False, True, False)
        gradient: Tensor
        _, gradient, _ = torch.ops.aten.convolution_backward(
            grad_output, input, weight, none, *geometry, False, none, case.groups, which
        )
        return gradient

    def ours() -> Tensor:
        return weight_gradient(grad_output, input, weight.shape, *geometry, case.groups)

    def literally() -> Tensor:
        return _literally(grad_output, input, _Geometry(weight.shape[2:], *geometry), case.groups)

    for gradient in (ours(), literally()):
        torch.testing.assert_close(gradient, theirs(), rtol=1e-3, atol=1e-2)
    return compare(ours, theirs, seconds).ratio, compare(literally, theirs, seconds).ratio


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each comparison")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)  # as in a plain backward pass
    keep_memory()
    print(
        f"{'input':20} {'weight':18} {'stride':>6} {'groups':>6} {'layout':>13} "
        f"{'ours':>7} {'literally':>10}"
    )
    for case in CASES:
        ours, literally = measure(case, args.seconds)
        print(
            f"{'x'.join(map(str, case.input)):20} {'x'.join(map(str, case.weight)):18} "
            f"{case.stride:6} {case.groups:6} "
            f"{'channels_last' if case.channels_last else '':>13} {ours:7.2f} {literally:10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
