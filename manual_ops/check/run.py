"""The checks in order, and ``check``, which runs them."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from manual_ops.check import (
    compilation,
    conditions,
    conduct,
    derivatives,
    layouts,
    memory,
    precision,
    transforms,
)
from manual_ops.check.causes import trace_back
from manual_ops.check.exam import Check, Exam
from manual_ops.check.graph import function_nodes
from manual_ops.check.report import Report, Row
from manual_ops.check.subject import Subject

Checkable = Callable[..., Any] | type[Function] | Module


def _table(checks: Mapping[str, Callable[[Check, Exam], Iterable[Row]]]) -> dict[str, Check]:
    return {
        name: Check(name, rows, (rows.__doc__ or "").strip().splitlines()[0])
        for name, rows in checks.items()
    }


CHECKS: dict[str, Check] = _table(
    {
        "gradient": derivatives.gradient,
        "batched gradient": derivatives.batched_gradient,
        "double backward": derivatives.double_backward,
        "third order": derivatives.third_order,
        "forward mode": derivatives.forward_mode,
        "forward over reverse": derivatives.forward_over_reverse,
        "reverse over forward": derivatives.reverse_over_forward,
        "jvp of jvp": derivatives.forward_over_forward,
        "third order, forward": derivatives.third_order_forward,
        "vmap": transforms.batched,
        "per-sample gradients": transforms.per_sample_gradients,
        "backward through vmap": transforms.backward_through_vmap,
        "jacobian": transforms.jacobian,
        "hessian": transforms.hessian,
        "gradients returned": conduct.gradients_returned,
        "undefined gradients": conduct.undefined_gradients,
        "needs_input_grad": conduct.needs_input_grad,
        "same tensor twice": conduct.same_tensor_twice,
        "determinism": conduct.determinism,
        "inputs unchanged": conduct.inputs_unchanged,
        "no grad mode": conduct.no_grad_mode,
        "setup_context": conduct.setup_context,
        "saved tensors": memory.saved_tensors,
        "saved bytes": memory.saved_bytes,
        "checkpoint": memory.checkpoint,
        "backward twice": memory.backward_twice,
        "in-place change of output": memory.changed_output,
        "freed without garbage collection": memory.freed,
        "layouts": layouts.of_inputs,
        "grad_output layouts": layouts.of_grad_output,
        "channels_last": layouts.memory_formats,
        "empty batch": conditions.empty_batch,
        "autocast": conditions.autocast,
        "meta device": conditions.meta_device,
        "precision": precision.precision,
        "values against reference": precision.values_against_reference,
        "gradients against reference": precision.gradients_against_reference,
        "compile": compilation.compiled,
        "compile, other batch size": compilation.other_batch_size,
        "compiled transforms": compilation.compiled_transforms,
    }
)


def select(only: Sequence[str] | None = None, skip: Sequence[str] = ()) -> list[Check]:
    """Return the checks to run, in order.

    Args:
        only: Their names, ``"double-backward"`` for ``"double backward"``; by default all.
        skip: Names of checks to leave out.

    Raises:
        TypeError: A string was given for a list of names.
        ValueError: A name is not known.
    """
    for names in (only, skip):
        if isinstance(names, str):
            raise TypeError(f"expected a list of names of checks, got the string {names!r}")
    skipped = {_known(name) for name in skip}
    wanted = set(CHECKS) if only is None else {_known(name) for name in only}
    return [check for name, check in CHECKS.items() if name in wanted - skipped]


def _known(text: str) -> str:
    """Return the name of the check that ``text`` names, in which ``-`` will do for a blank."""

    def bare(name: str) -> str:
        return re.sub(r"[^a-z]+", "-", name.lower())

    for name in CHECKS:
        if bare(name) == bare(text):
            return name
    close = get_close_matches(text, CHECKS, cutoff=0.5) or list(CHECKS)
    raise ValueError(f"there is no check {text!r}; there is {', '.join(map(repr, close))}")


def check(
    fn: Checkable,
    *inputs: Any,
    reference: Checkable | None = None,
    keywords: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    mutates: Sequence[str] = (),
    seed: int = 0,
    backend: str | Callable[..., Any] = "aot_eager",
) -> Report:
    """Check the derivatives and the conduct of an op.

    Args:
        fn: An ``autograd.Function``, a callable or a module.
        *inputs: Its inputs. Gradients are checked of the floating-point and complex tensors that
            require grad, of all of them if none does; and of a module's parameters.
        reference: Another implementation, to compare values and gradients with.
        keywords: Keyword inputs.
        only: Names of the checks to run; by default all of ``CHECKS``
            (``from manual_ops.check import CHECKS``).
        skip: Names of checks to leave out.
        mutates: Names of tensors that ``fn`` is meant to update in place.
        seed: Of the random numbers that ``fn`` draws: the same in every call.
        backend: Of torch.compile; ``"inductor"`` needs a C++ compiler.

    Returns:
        A report; it prints as a table. Nothing is raised for what is found.

    Raises:
        TypeError: ``fn`` is none of these, or nothing can be differentiated.
        ValueError: A name is not known.
    """
    chosen = select(only, skip)
    cuda = {
        x.device for x in tree_leaves((inputs, keywords)) if isinstance(x, Tensor) and x.is_cuda
    }
    with torch.random.fork_rng(list(cuda)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap's loop: slow
        warnings.filterwarnings("ignore", "B?Complex(Half|32) support is experimental")
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")  # torch's own use
        torch.manual_seed(seed)
        subject = Subject.of(fn, inputs, keywords, mutates=mutates, seed=seed)
        other = None
        if reference is not None:
            other = subject.on(Subject.of(reference, inputs, keywords, mutates=mutates, seed=seed))
        exam = Exam(subject, other, backend)
        rows = tuple(row for one in chosen for row in one(exam))
        if any(row.failed for row in rows):
            has_function = bool(function_nodes(subject(*subject.leaf_tensors())))
            rows = tuple(trace_back(rows, has_function=has_function))
        return Report(subject.name, (f"on {subject.described_inputs}", *exam.notes), rows)
