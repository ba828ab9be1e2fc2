"""What an op leaves in the autograd graph: what it saves, computes, mutates and keeps alive."""

import gc
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import combinations
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from manual_ops.testing.cases import OpCase
from tests.harness import (
    CountOps,
    cases_for,
    first,
    on_differentiable,
    random_like,
    requiring,
    run,
    saved_bytes,
    scalar,
    subject,
)

pytestmark = cases_for()

# What the gradient of one argument can do without: op, the argument, what must not be saved for it.
AFFINE_NEEDS_NOT = {
    "input": ("input", "bias"),
    "weight": ("weight", "bias"),
    "bias": ("input", "weight", "bias"),
}
NEEDS_NOT = {
    "linear": AFFINE_NEEDS_NOT,
    "conv1d": AFFINE_NEEDS_NOT,
    "conv2d": AFFINE_NEEDS_NOT,
    "avg_pool2d": {"input": ("input",)},
    "dropout": {"input": ("input",)},
    "scaled_dot_product_attention": {"value": ("value",)},
}
BATCH_NORM_EVAL_NEEDS_NOT = {"input": ("input", "bias"), "bias": ("input", "weight", "bias")}


def subsets(case: OpCase) -> list[tuple[str, ...]]:
    """Every way to ask for some of the gradients, all of them last."""
    names = case.differentiable
    return [c for n in range(1, len(names) + 1) for c in combinations(names, n)]


def test_inputs_and_grad_output_are_not_modified(case: OpCase) -> None:
    arguments = requiring(case.sample(), case.differentiable)
    tensors = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and name not in case.buffers
    }
    output = first(subject(case)(**arguments))
    tensors["grad_output"] = random_like(output, 1)
    before = {name: (t._version, t.detach().clone()) for name, t in tensors.items()}
    torch.autograd.grad(output, [arguments[n] for n in case.differentiable], tensors["grad_output"])
    assert all(tensors[name]._version == 0 for name in arguments if name in tensors)
    for name, (version, value) in before.items():
        assert tensors[name]._version == version, name
        assert torch.equal(tensors[name], value), name


def test_only_the_gradients_asked_for_are_computed(case: OpCase) -> None:
    arguments = case.sample()
    calls = {}
    full: dict[str, Tensor] = {}
    for names in reversed(subsets(case)):
        chosen = requiring(arguments, names)
        if case.random:
            torch.manual_seed(0)
        output = first(subject(case)(**chosen))
        with CountOps() as count:
            found = torch.autograd.grad(
                output, [chosen[name] for name in names], random_like(output, 1)
            )
        calls[names] = len(count.calls)
        full = full or dict(zip(names, found, strict=True))
        for name, gradient in zip(names, found, strict=True):
            assert torch.equal(gradient, full[name]), name
    every = calls.pop(case.differentiable)
    for names, some in calls.items():
        strictly = "input" not in names or "fewer operations" not in case.exempt
        assert some < every if strictly else some <= every, f"{names}: {some} calls of {every}"


def test_saves_no_more_bytes_than_torch(case: OpCase) -> None:
    if "saved bytes" in case.exempt:
        pytest.skip(case.exempt["saved bytes"])
    for names in subsets(case):
        arguments = requiring(case.sample(torch.float32), names)
        ours, _ = saved_bytes(partial(subject(case), **arguments))
        theirs, _ = saved_bytes(partial(case.reference, **arguments))
        assert ours <= theirs, f"{ours} bytes saved for {names}, torch.nn saves {theirs}"


def test_frozen_arguments_save_nothing_unneeded(case: OpCase) -> None:
    needs_not = NEEDS_NOT.get(case.op, {})
    if case.op == "batch_norm" and not case.arguments.get("training"):
        needs_not = BATCH_NORM_EVAL_NEEDS_NOT
    for asked, unneeded in needs_not.items():
        if asked not in case.differentiable:
            continue
        arguments = requiring(case.sample(), (asked,))
        _, saved = saved_bytes(partial(subject(case), **arguments))
        for name in unneeded:
            if isinstance(arguments.get(name), Tensor):
                address = arguments[name].untyped_storage().data_ptr()
                assert address not in saved, f"{name} is saved for the gradient of {asked}"


def test_saved_tensors_pass_hooks_and_are_read_once(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    reads: dict[int, int] = {}
    store: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        store.append(tensor.detach().clone())
        return len(store) - 1

    def unpack(index: int) -> Tensor:
        reads[index] = reads.get(index, 0) + 1
        return store[index]

    with saved_tensors_hooks(pack, unpack):
        output = function(*tensors)
    gradients = torch.autograd.grad(output, tensors, random_like(output, 1))
    assert all(count == 1 for count in reads.values())
    with save_on_cpu():
        output = function(*tensors)
    again = torch.autograd.grad(output, tensors, random_like(output, 1))
    plain = function(*tensors)
    expected = torch.autograd.grad(plain, tensors, random_like(plain, 1))
    assert all(map(torch.equal, gradients, expected))
    assert all(map(torch.equal, again, expected))


@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_activation_checkpointing(case: OpCase, reentrant: bool) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    value = scalar(function, tensors)
    expected = torch.autograd.grad(value(*tensors), tensors)
    checkpoint(value, *tensors, use_reentrant=reentrant).backward()
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


def called_functions(function: Callable[[], Any]) -> set[str]:
    """The names of all Python functions that run while ``function`` does."""
    names = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        names.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def test_no_function_without_grad_mode(case: OpCase) -> None:
    for context, names in (
        (torch.no_grad(), case.differentiable),
        (torch.inference_mode(), case.differentiable),
        (torch.enable_grad(), ()),
    ):
        arguments = requiring(case.sample(), names)
        with context:
            assert first(subject(case)(**arguments)).grad_fn is None
            called = called_functions(partial(subject(case), **arguments))
        assert not called & {"setup_context", "save_for_backward"}


def test_graph_is_freed_without_garbage_collection(case: OpCase) -> None:
    class Sentinel:
        def __call__(self, gradient: Tensor) -> None: ...

    arguments = requiring(case.sample(), case.differentiable)
    sentinel = Sentinel()
    alive = weakref.ref(sentinel)
    gc.disable()
    try:
        name = case.differentiable[0]
        hidden = arguments[name] * 1  # its node holds the sentinel, and the op's node holds its
        hidden.register_hook(sentinel)
        output = subject(case)(**(arguments | {name: hidden}))
        del sentinel, hidden
        assert alive() is not None
        first(output).sum().backward()
        del output
        assert alive() is None
    finally:
        gc.enable()


def test_backward_twice(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    output = function(*tensors)
    grad_output = random_like(output, 1)
    once = torch.autograd.grad(output, tensors, grad_output, retain_graph=True)
    twice = torch.autograd.grad(output, tensors, grad_output)
    assert all(map(torch.equal, once, twice))


def test_in_place_change_of_the_output_is_never_silently_wrong(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    output = function(*tensors)
    expected = torch.autograd.grad(output * 2, tensors, random_like(output, 1))
    output = function(*(tensor * 1 for tensor in tensors))
    output.mul_(2)
    # The op has saved its output and autograd notices, or has not and the gradient is right.
    with suppress(RuntimeError):
        found = torch.autograd.grad(output, tensors, random_like(output, 1))
        torch.testing.assert_close(found, expected)


def test_threads_do_not_disturb_each_other(case: OpCase) -> None:
    if case.random:
        pytest.skip("one generator serves all threads")

    def work(seed: int) -> list[Tensor]:
        result = run(case, subject(case), case.sample(seed=seed), lambda o: random_like(o, seed))
        return [*result.outputs.values(), *result.gradients.values()]

    expected = [work(seed) for seed in (0, 1)]

    def repeat(seed: int) -> bool:
        return all(all(map(torch.equal, work(seed), expected[seed])) for _ in range(10))

    with ThreadPoolExecutor(max_workers=2) as pool:
        assert all(pool.map(repeat, (0, 1)))
