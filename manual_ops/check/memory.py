"""Checks of memory: what an op saves for backward, how, and how long it lives."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from manual_ops.check.conduct import by_input, subsets
from manual_ops.check.exam import Check, Exam, draw_like
from manual_ops.check.graph import function_name, function_nodes, pull_back, saving, tensors_on
from manual_ops.check.report import Row
from manual_ops.check.subject import Subject


def saved_bytes(check: Check, exam: Exam) -> Iterator[Row]:
    """Frozen inputs save no bytes more, and no choice of inputs more than the reference."""
    op, reference = exam.given, exam.reference
    every = _Saved.of(op, op.tensor_names)
    for asked in subsets(op.tensor_names):
        mine = _Saved.of(op, asked)
        if mine.by_function and mine.bytes > every.bytes:  # torch's own kernels are not the op's
            yield check.failed(
                f"for {' and '.join(asked)} alone",
                f"{mine.bytes:,} bytes saved for backward, {every.bytes:,} for all inputs",
            )
            return
        if reference and mine.bytes > (theirs := _Saved.of(reference, asked).bytes):
            yield check.failed(
                f"for {' and '.join(asked)}",
                f"{mine.bytes:,} bytes saved for backward, {theirs:,} by the reference",
                cause="Save inputs and outputs rather than intermediates, masks as bool, and "
                "nothing that only a gradient not asked for needs.",
            )
            return
    detail = f"{every.bytes:,} bytes in {every.tensors} tensors"
    if reference:
        detail += f", the reference {_Saved.of(reference, op.tensor_names).bytes:,}"
    yield check.passed(detail=detail)


@dataclass(frozen=True)
class _Saved:
    """What is kept for backward.

    Attributes:
        bytes: Of the distinct storages.
        tensors: How many.
        by_function: Whether there is a Function in the graph.
    """

    bytes: int
    tensors: int
    by_function: bool

    @classmethod
    def of(cls, op: Subject, asked: Sequence[str]) -> "_Saved":
        """What ``op`` keeps for the gradients ``asked`` for."""
        with saving() as saved:
            outputs = op(*op.leaf_tensors(asked))
        nodes = function_nodes(outputs)
        kept = [tensor for node in nodes for _, tensor in tensors_on(node)]
        return cls(saved.bytes(*kept), len(saved.tensors) + len(kept), bool(nodes))


def saved_tensors(check: Check, exam: Exam) -> Iterator[Row]:
    """What backward needs is saved by save_for_backward, survives offloading, is read once."""
    op = exam.given
    leaves = op.leaf_tensors()
    expected = pull_back(op(*leaves), leaves)
    with saving(copy=True) as saved:
        outputs = op(*leaves)
    kept = {
        f"{function_name(node)}: {place}": tensor
        for node in function_nodes(outputs)
        for place, tensor in tensors_on(node)
    }
    for place, tensor in kept.items():
        yield check.failed(place, f"a tensor {list(tensor.shape)} outside save_for_backward")
    found = pull_back(outputs, leaves)
    row = check.all_equal(
        by_input(op, found, expected),
        ulps=0,
        cause="Backward tells a saved tensor from its copy: it compares addresses or identities, "
        "or writes to it.",
    )
    if row.failed:
        yield row
    again = [t for t, reads in zip(saved.tensors, saved.reads, strict=True) if reads > 1]
    if again:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in again)
        yield check.failed(
            "",
            f"read more than once in one backward: {shapes}",
            cause="Each ctx.saved_tensors unpacks all again (checkpointing recomputes or raises, "
            "offloading copies): read it once, into names.",
        )
    elif not kept and not row.failed:
        yield check.passed(detail=f"{len(saved.tensors)} saved")


def checkpoint(check: Check, exam: Exam) -> Iterator[Row]:
    """Activation checkpointing, reentrant or not, gives the same gradients."""
    op = exam.given
    leaves = op.leaf_tensors()
    expected = pull_back(op(*leaves), leaves)
    for reentrant in (False, True):
        leaves = op.leaf_tensors()
        outputs = checkpointed(op, *leaves, use_reentrant=reentrant)
        torch.autograd.backward(outputs, draw_like(outputs, 1))
        found = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        row = check.all_equal(by_input(op, found, expected), ulps=0)
        if row.failed:
            break
    yield row


def backward_twice(check: Check, exam: Exam) -> Iterator[Row]:
    """Backward can be called again on a retained graph, and gives the same."""
    op = exam.given
    leaves = op.leaf_tensors()
    outputs = op(*leaves)
    first = pull_back(outputs, leaves, retain_graph=True)
    first = tuple(gradient.clone() for gradient in first)
    yield check.all_equal(by_input(op, pull_back(outputs, leaves), first), ulps=0)


def changed_output(check: Check, exam: Exam) -> Iterator[Row]:
    """An in-place change of the output raises in backward or leaves the gradient right."""
    op = exam.given
    leaves = op.leaf_tensors()
    count = len(op(*leaves))
    for k in range(count):
        outputs = op(*leaves)
        doubled = [o * 2 if i == k else o for i, o in enumerate(outputs)]
        expected = pull_back(doubled, leaves)
        outputs = op(*(leaf * 1 for leaf in leaves))
        try:
            outputs[k].mul_(2)
            found = pull_back(outputs, leaves)
        except RuntimeError:  # autograd noticed
            continue
        row = check.all_equal(by_input(op, found, expected))
        if row.failed:
            yield row
            return
    yield check.passed()


def freed(check: Check, exam: Exam) -> Iterator[Row]:
    """Once the outputs are gone so is their graph, without garbage collection."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        outlives = _graph_outlives_outputs(exam.given)
    finally:
        if collecting:
            gc.enable()
    yield check.failed("", "the graph outlives the outputs") if outlives else check.passed()


def _graph_outlives_outputs(op: Subject) -> bool:
    class Sentinel:
        def __call__(self, gradient: Tensor) -> None: ...

    leaves = list(op.leaf_tensors())
    sentinel = Sentinel()
    alive = weakref.ref(sentinel)
    # A module may remember its parameters; its inputs it need not.
    inputs = [i for i, leaf in enumerate(op.differentiable) if leaf in op.arguments]
    for i in inputs or range(len(leaves)):
        leaves[i] = leaves[i] * 1  # the op's node holds the node of this: that, the sentinel
        leaves[i].register_hook(sentinel)
    outputs = op(*leaves)
    del sentinel
    leaves.clear()
    torch.autograd.backward(outputs, draw_like(outputs, 1))
    del outputs
    return alive() is not None
