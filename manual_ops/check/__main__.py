"""Check an op from the command line: ``python -m manual_ops.check --help``."""

import argparse
import json
import shutil
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from manual_ops.check.matrix import LIBRARIES, OPS, run_matrix
from manual_ops.check.report import Report
from manual_ops.check.run import CHECKS, check, select
from manual_ops.check.target import TargetError, TensorInput, build, find, parse_value

EXAMPLES = """\
examples:
  python -m manual_ops.check manual_ops.nn.BatchNorm2d --shape 4,3,5,5
  python -m manual_ops.check manual_ops.functional.softmax --shape 3,4 --kwargs dim=1
  python -m manual_ops.check manual_ops.nn.CrossEntropyLoss --shape 5,10 --integers 5:10
  python -m manual_ops.check torch.nn.functional.layer_norm --shape 3,4 --shape weight=4 \\
      --kwargs normalized_shape=4,
  python -m manual_ops.check path/to/file.py:MyFunction --shape 3,4 --shape 4,2

  python -m manual_ops.check --all --only-ops linear conv2d

exit code: 0 if nothing failed, 1 if a check failed, 2 if the command line is wrong
"""
BACKEND = "aot_eager"
DTYPES = ("float64", "float32", "bfloat16", "float16", "complex64", "complex128")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        width = max(map(len, CHECKS))
        print(*(f"{name:{width}}  {one.meaning}" for name, one in CHECKS.items()), sep="\n")
        return 0
    if options.all:
        return _check_library(options)
    try:
        report = _check(options)
    except TargetError as error:
        parser.error(str(error))
    print(report.to_json() if options.json else report)
    if options.html:
        options.html.write_text(_page(report), encoding="utf-8")
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manual_ops.check",
        usage="%(prog)s TARGET --shape 3,4 [--shape ...] [options]; --help explains",
        description="Check the derivatives and the conduct of an op.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("target", nargs="?", help="package.module.name or path/to/file.py:name")
    inputs = parser.add_argument_group("inputs, in order; NAME= makes one a keyword input")
    inputs.add_argument(
        "--shape",
        action="append",
        dest="inputs",
        type=_typed(TensorInput.parse, "sizes such as 3,4 or weight=4"),
        metavar="[NAME=]3,4",
        help="a tensor of normal numbers",
    )
    inputs.add_argument(
        "--integers",
        action="append",
        dest="inputs",
        type=_typed(TensorInput.parse_integers, "sizes and a bound such as 5:10 or target=5:10"),
        metavar="[NAME=]5:10",
        help="a tensor of integers: its shape, and what they are less than",
    )
    inputs.add_argument(
        "--constant",
        action="append",
        dest="inputs",
        type=_typed(
            partial(TensorInput.parse, kind="constants"), "sizes such as 3,4 or target=3,4"
        ),
        metavar="[NAME=]3,4",
        help="a tensor of normal numbers that is not differentiated by: a target, a bound",
    )
    inputs.add_argument(
        "--booleans",
        action="append",
        dest="inputs",
        type=_typed(partial(TensorInput.parse, kind="booleans"), "sizes such as 3,4 or mask=3,4"),
        metavar="[NAME=]3,4",
        help="a tensor of booleans",
    )
    inputs.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="all floating-point inputs are uniform in this range instead of normal",
    )
    inputs.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    inputs.add_argument("--device", default="cpu", help="default: %(default)s")
    inputs.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    call = parser.add_argument_group(
        "other arguments, of a module's constructor, else of the call after the tensors",
        "Sizes of a module that are not given (channels, features) are read off the first input.",
    )
    call.add_argument(
        "--args",
        nargs="+",
        default=[],
        type=_typed(parse_value, "a value such as 1, None or torch.float32"),
        metavar="VALUE",
    )
    call.add_argument(
        "--kwargs",
        nargs="+",
        default=[],
        type=_typed(_keyword, "NAME=VALUE such as dim=1"),
        metavar="NAME=VALUE",
    )
    call.add_argument(
        "--mutates",
        nargs="+",
        default=[],
        metavar="NAME",
        help="inputs updated in place on purpose",
    )
    call.add_argument("--reference", metavar="TARGET", help="an implementation to compare with")
    checks = parser.add_argument_group("checks")
    named = partial(checks.add_argument, nargs="+", type=_check_name, metavar="CHECK")
    named("--only", help="run these alone, such as gradient double-backward")
    named("--skip", default=[], help="leave these out")
    checks.add_argument("--backend", default=BACKEND, help="of torch.compile, default: %(default)s")
    checks.add_argument("--list", action="store_true", help="list the checks, and stop")
    library = parser.add_argument_group("the library itself, on its own table of cases")
    library.add_argument("--all", action="store_true", help="every check on every op, as a matrix")
    library.add_argument("--only-ops", nargs="+", default=OPS, choices=OPS, metavar="OP")
    library.add_argument(
        "--library",
        nargs="+",
        default=["manual_ops"],
        choices=LIBRARIES,
        help="whose ops, default: manual_ops; the exit code is that of the first",
    )
    library.add_argument("--markdown", action="store_true", help="print the docs' page")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--html", type=Path, metavar="FILE", help="write the table as a page, too")
    return parser


def _typed(parse: Any, expected: str) -> Any:
    """A type of an argument, whose message says what is expected."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, AttributeError):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return parse_argument


def _keyword(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(text)
    return name, parse_value(value)


def _check_name(text: str) -> str:
    """The name of a check."""
    try:
        return select([text])[0].name
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; see --list") from None


def _check(options: argparse.Namespace) -> Report:
    """Find the target, draw its inputs, check it."""
    _refuse_what_is_missing(options)
    device = _device(options.device)
    keywords = dict(options.kwargs)
    torch.manual_seed(options.seed)

    def found(target: str) -> tuple[Any, list[Any], dict[str, Any]]:
        """The op, and the arguments that are left for its call."""
        op = find(target)
        if isinstance(op, type) and issubclass(op, nn.Module):
            module = build(op, options.inputs, options.args, keywords)
            return module.to(device, getattr(torch, options.dtype)), [], {}
        if not callable(op) or (isinstance(op, type) and not issubclass(op, Function)):
            raise TargetError(
                f"{target} is {op!r}: expected a Function, a module or a function; of another "
                "class, name an instance"
            )
        return op, options.args, keywords

    op, values, rest = found(options.target)
    _check_backend(options.backend)
    reference = found(options.reference)[0] if options.reference else None
    try:
        draw = partial(
            TensorInput.draw,
            dtype=getattr(torch, options.dtype),
            device=device,
            between=options.range,
        )
        drawn = [(one, draw(one)) for one in options.inputs]
        if any(one.kind == "constants" for one in options.inputs):
            for one, tensor in drawn:
                tensor.requires_grad_(one.kind == "numbers")
        positional = [tensor for one, tensor in drawn if not one.name]
        named = {one.name: tensor for one, tensor in drawn if one.name}
        return check(
            op,
            *positional,
            *values,
            reference=reference,
            keywords=named | rest,
            only=options.only,
            skip=options.skip,
            mutates=options.mutates,
            seed=options.seed,
            backend=options.backend,
        )
    except Exception as error:  # what the op raises on the inputs
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise TargetError(
            f"{options.target} cannot be checked on these inputs: {type(error).__name__}: {error} "
            f"({last.filename}:{last.lineno}); change the inputs, --args or --kwargs"
        ) from error


def _refuse_what_is_missing(options: argparse.Namespace) -> None:
    if not options.target:
        raise TargetError("what is to be checked? Give package.module.name or file.py:name first")
    if not options.inputs:
        raise TargetError("give each input of the op, in order: --shape 3,4, or --integers 5:10")
    if {one.kind for one in options.inputs} == {"constants"}:
        raise TargetError("beside --constant, give an input to differentiate by: --shape 3,4")
    if options.html and not options.html.parent.is_dir():
        raise TargetError(f"--html {options.html}: there is no folder {options.html.parent}")


def _device(name: str) -> torch.device:
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TargetError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _check_backend(name: str) -> None:
    """Refuse a backend that is not known, once the target, which may register it, is imported."""
    if name != BACKEND and name not in torch.compiler.list_backends(None):
        raise TargetError(f"--backend {name}: torch.compiler.list_backends(None) has no such name")


def _check_library(options: argparse.Namespace) -> int:
    """Print the matrix of ops and checks."""
    matrix = run_matrix(options.library, options.only_ops, options.only, options.skip)
    if options.json:
        print(json.dumps(matrix.to_json(), indent=2))
    elif options.markdown:
        command = f"python -m manual_ops.check {' '.join(sys.argv[1:])} > docs/conformance.md"
        print(*matrix.markdown(command), sep="\n")
    else:
        print(*matrix.lines(shutil.get_terminal_size((120, 24)).columns), sep="\n")
    return 0 if matrix.ok else 1


def _page(report: Report) -> str:
    """A page of its own that shows the report."""
    return (
        "<!doctype html><meta charset='utf-8'><meta name='color-scheme' content='light dark'>"
        "<style>body { font: 15px sans-serif } td, th { padding: 2px 12px 2px 0 }</style>"
        f"<title>{report.title}</title>{report._repr_html_()}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
