"""What no check does: kernels that must not run, threads, the limits of torch.compile."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from manual_ops import functional
from manual_ops.testing.cases import CASES, OpCase
from tests.harness import (
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
    "linear_relu": AFFINE_NEEDS_NOT,
    "conv2d_relu": AFFINE_NEEDS_NOT,
    "layer_norm": {**AFFINE_NEEDS_NOT, "input": ("bias",)},
    "group_norm": {**AFFINE_NEEDS_NOT, "input": ("bias",)},
    "avg_pool2d": {"input": ("input",)},
    "max_pool2d": {"input": ("input",)},
    "dropout": {"input": ("input",)},
    "scaled_dot_product_attention": {"value": ("value",)},
}
BATCH_NORM_EVAL_NEEDS_NOT = {"input": ("input", "bias"), "bias": ("input", "weight", "bias")}


def needs_not(case: OpCase) -> dict[str, tuple[str, ...]]:
    """What need not be saved for the gradient of each of these arguments alone."""
    if case.op == "batch_norm" and not case.arguments.get("training"):
        return BATCH_NORM_EVAL_NEEDS_NOT
    return NEEDS_NOT.get(case.op, {})


@cases_for(table=[case for case in CASES if needs_not(case)])
def test_frozen_arguments_save_nothing_unneeded(case: OpCase) -> None:
    for asked, unneeded in needs_not(case).items():
        if asked not in case.differentiable:
            continue
        arguments = requiring(case.sample(), (asked,))
        _, saved = saved_bytes(partial(subject(case), **arguments))
        for name in unneeded:
            if isinstance(arguments.get(name), Tensor):
                address = arguments[name].untyped_storage().data_ptr()
                assert address not in saved, f"{name} is saved for the gradient of {asked}"


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


@cases_for()
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


# One generator serves all threads.
@cases_for(table=[case for case in CASES if not case.random])
def test_threads_do_not_disturb_each_other(case: OpCase) -> None:
    def work(seed: int) -> list[Tensor]:
        result = run(case, subject(case), case.sample(seed=seed), lambda o: random_like(o, seed))
        return [*result.outputs.values(), *result.gradients.values()]

    expected = [work(seed) for seed in (0, 1)]

    def repeat(seed: int) -> bool:
        return all(all(map(torch.equal, work(seed), expected[seed])) for _ in range(10))

    with ThreadPoolExecutor(max_workers=2) as pool:
        assert all(pool.map(repeat, (0, 1)))


@cases_for()
def test_older_vmap(case: OpCase) -> None:
    """``torch.autograd.functional`` has a vmap of its own, with fewer batching rules."""
    function, tensors = on_differentiable(case, subject(case), case.sample())
    expected = jacobian(function, tensors)
    if not case.random:  # it cannot draw the same numbers for every direction
        found = jacobian(function, tensors, vectorize=True, strategy="forward-mode")
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(jacobian(function, tensors, vectorize=True), expected)
    value = scalar(function, tensors)
    torch.testing.assert_close(hessian(value, tensors, vectorize=True), hessian(value, tensors))


def test_double_backward_through_compiled_code_is_refused() -> None:
    """PyTorch's own limit, for every module: an error, never a wrong number."""
    tensor = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    output = torch.compile(functional.tanh, fullgraph=True, backend="aot_eager")(tensor)
    (gradient,) = torch.autograd.grad(output.square().sum(), tensor, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()
    torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@cases_for()
def test_no_hidden_synchronisation(case: OpCase) -> None:
    """Nothing waits for the device, in forward or backward."""
    arguments = case.sample(torch.float32, "cuda")
    run(case, subject(case), arguments, torch.ones_like)  # sets up what is set up but once
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, subject(case), arguments, torch.ones_like)
    finally:
        torch.cuda.set_sync_debug_mode("default")
