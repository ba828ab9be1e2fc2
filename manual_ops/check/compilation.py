"""Checks of torch.compile: no graph break, the right numbers, any batch size, under torch.func."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from manual_ops.check.batches import batches, resized, value_of
from manual_ops.check.exam import Check, Exam, draw_like
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.runs import close, run
from manual_ops.check.subject import Subject

_OTHER_NUMBERS = "draws other random numbers when compiled"


def compiled(check: Check, exam: Exam) -> Iterator[Row]:
    """``torch.compile(fullgraph=True)``, forward and backward, against eager."""
    op = exam.precise
    with _compiler(exam) as compile:
        yield _attempt(check, "", partial(_compare, check, op, compile(op.call)))


def other_batch_size(check: Check, exam: Exam) -> Iterator[Row]:
    """Compiled code on a batch of another size: the last of an epoch is smaller."""
    op = exam.precise
    doubled, _ = resized(op, lambda tensor: torch.cat([tensor, tensor]))
    with _compiler(exam) as compile:
        call = compile(op.call)
        _run_once(op, call)
        yield _attempt(check, "", partial(_compare, check, doubled, call))


def compiled_transforms(check: Check, exam: Exam) -> Iterator[Row]:
    """``torch.compile`` around ``grad``, ``jvp``, ``vmap`` and ``vmap(grad)``."""
    op = exam.precise
    with torch.no_grad():
        weights = draw_like(op(*op.tensors), 1)
    value = partial(value_of, replace(op, random=False), weights)  # seeded from outside
    gradient = grad(value, op.differentiable)
    directions = dict(zip(op.differentiable, draw_like(op.tensors, 30), strict=True))

    def tangent(*leaves: Any) -> Any:
        def function(*tensors: Tensor) -> Tensor:
            chosen = dict(zip(directions, tensors, strict=True))
            # Forward mode does not write to what comes from outside of it.
            chosen |= {i: leaves[i].clone() for i in op.mutable}
            return value(*(chosen.get(i, leaf) for i, leaf in enumerate(leaves)))

        primals = tuple(leaves[i] for i in directions)
        return jvp(function, primals, tuple(directions.values()))[1]

    def compare(name: str, function: Callable[..., Any], leaves: Callable[[], Any]) -> Row:
        try:
            expected = _results(op.seed, function, leaves())
        except Exception as error:
            raise NotApplicableError("does not work without torch.compile either") from error
        with _compiler(exam) as compile:
            row = close(check, _results(op.seed, compile(function), leaves()), expected, name)
        if row.failed and op.random:
            raise NotApplicableError(_OTHER_NUMBERS)
        return row

    batch = next(batches(op))
    single = partial(batch.sample, 0)
    for name, function, leaves in (
        ("grad", gradient, single),
        ("jvp", tangent, single),
        ("vmap", batch.vmap(value), batch.leaves),
        ("vmap(grad)", batch.vmap(gradient), batch.leaves),
    ):
        row = _attempt(check, name, partial(compare, name, function, leaves))
        if row.failed:
            with _compiler(exam) as compile:
                _run_once(op, compile(op.call))
        yield row


def _compare(check: Check, op: Subject, call: Callable[..., Any]) -> Row:
    """Compare ``op`` by ``call``, which is compiled, with eager."""
    found, expected = run(op, call=call), run(op)
    if op.random and close(check, found.values, expected.values).failed:
        raise NotApplicableError(_OTHER_NUMBERS)
    return close(check, found.every, expected.every)


def _run_once(op: Subject, call: Callable[..., Any]) -> None:
    """Compile by a first call.

    Raises:
        NotApplicableError: It cannot be compiled, which is the row of another check.
    """
    try:
        run(op, call=call)
    except Exception as error:
        raise NotApplicableError("does not compile at all, see compile") from error


def _results(seed: int, function: Callable[..., Any], leaves: list[Any]) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    found = function(*leaves)
    found = found if isinstance(found, tuple) else (found,)
    return {f"result {k}:": tensor.detach() for k, tensor in enumerate(found)}


@contextmanager
def _compiler(exam: Exam) -> Iterator[Callable[..., Callable[..., Any]]]:
    """``torch.compile``, with nothing compiled before and nothing left behind."""
    from torch._dynamo.eval_frame import is_dynamo_supported  # seconds, so not with the package

    if not is_dynamo_supported():
        raise NotApplicableError("torch.compile does not run on this platform")
    torch.compiler.reset()
    try:
        yield partial(torch.compile, fullgraph=True, backend=exam.backend)
    finally:
        torch.compiler.reset()


def _attempt(check: Check, name: str, find: Callable[[], Row]) -> Row:
    """The row that ``find`` returns, or one on what it raises: on a graph break, where."""
    try:
        return find()
    except Exception as error:
        row = check.raised(error, name)
        if not row.failed:
            return row
        found = row.detail.replace("Unsupported:", "graph break:")
        return replace(row, where=_code(str(error)), detail=found)


def _code(message: str) -> str:
    """The line of the user's code that a message of Dynamo is about."""
    _, _, code = message.partition("from user code:")
    frames = re.findall(r'File "(.+?)", line (\d+), in (\S+)', code)
    own = Path(__file__).parent
    outside = [(file, line, name) for file, line, name in frames if Path(file).parent != own]
    if not outside:
        return ""
    file, line, name = outside[-1]
    return f"{Path(file).name}:{line} in {name}"
