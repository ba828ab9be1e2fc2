"""Time one training step of whole models against torch.nn.

python -m benchmarks.models                        # eager
python -m benchmarks.models --compile              # both sides under torch.compile
python -m benchmarks.models --fuse                 # ours with fused ops: convert(fuse=True)
python -m benchmarks.models --bfloat16             # both sides under autocast
python -m benchmarks.models --only mnist-cnn vgg
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

import manual_ops
from benchmarks.measure import compare, keep_memory, saved_bytes
from benchmarks.table import Row, Table, add_options, write
from models import build


@dataclass(frozen=True)
class Case:
    """One row: a model, its input and its batch size."""

    model: str
    input_shape: tuple[int, ...]
    batch_size: int
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("mlp", (784,), 64, {"hidden": (300,), "activation": "sigmoid"}),
    Case("mlp", (784,), 128, {"hidden": (512, 256), "activation": "relu", "batch_norm": True}),
    Case("mnist-cnn", (1, 28, 28), 128),
    Case("fashion-cnn", (1, 28, 28), 128),
    Case("cifar-cnn", (3, 32, 32), 128),
    Case("vgg", (3, 32, 32), 64),
    Case("resnet18", (3, 32, 32), 32),
    Case("speed-resnet", (3, 32, 32), 125, {"width": 0.5}),
]


def side(
    case: Case, layers: ModuleType, *, compiled: bool, bfloat16: bool, fuse: bool
) -> tuple[Callable[[], None], int]:
    """Return one training step on fixed random data, and the bytes its forward pass saves.

    Parameters are not counted: they are there anyway.
    """
    torch.manual_seed(0)
    model = build(case.model, layers, case.input_shape, 10, **case.options)
    if fuse and layers is manual_ops.nn:
        model, _ = manual_ops.convert(model, inplace=True, fuse=True)
    criterion = layers.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(case.batch_size, *case.input_shape)
    labels = torch.randint(10, (case.batch_size,))

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            loss: torch.Tensor = criterion(model(images), labels)
        return loss

    saved = saved_bytes(lambda: loss_of(images, labels), besides=model.parameters())
    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad()
        forward(images, labels).backward()
        optimizer.step()

    return step, saved


def main() -> None:
    """Print one line for each model, and the geometric mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="names of models; default all")
    parser.add_argument("--compile", action="store_true", help="compile both sides")
    parser.add_argument("--fuse", action="store_true", help="let fused ops run ours")
    parser.add_argument("--bfloat16", action="store_true", help="autocast both sides")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each line")
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    flags = [flag for flag in ("compile", "fuse", "bfloat16") if getattr(args, flag)]
    table = Table(", ".join(["training step", *flags]))
    for case in CASES:
        if args.only and case.model not in args.only:
            continue
        torch._dynamo.reset()  # it keeps few graphs for one function, here those of all models
        (ours, our_bytes), (theirs, their_bytes) = (
            side(case, layers, compiled=args.compile, bfloat16=args.bfloat16, fuse=args.fuse)
            for layers in (manual_ops.nn, torch.nn)
        )
        times = compare(ours, theirs, args.seconds)
        table.add(Row(f"{case.model} batch {case.batch_size}", times, our_bytes, their_bytes))
    table.close()
    options = [*(f"--{flag}" for flag in flags), f"--seconds {args.seconds:g}"]
    command = " ".join(["python -m benchmarks.models", *options])
    write(args, command, [table])


if __name__ == "__main__":
    main()
