"""Torch's own functions inside ``override()`` run the hand-written ops, and only there."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    get_overridable_functions,
)
from torch.utils.checkpoint import checkpoint

from manual_ops import functional, override
from manual_ops._override import _ROUTES
from manual_ops.testing.cases import CASES, OpCase
from tests.harness import CountOps, Run, cases_for, first, random_like, run


def nodes(tensor: Tensor) -> Iterator[Any]:
    """Every node of the graph behind ``tensor``."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def by_hand(tensor: Tensor) -> bool:
    """Whether a Python Function is among what made ``tensor``; all of torch's own are C++."""
    return any(isinstance(node, BackwardCFunction) for node in nodes(tensor))


def torchs(name: str) -> Callable[..., Any]:
    return getattr(F, name, None) or getattr(torch, name)


# Not the fused ops, which torch has not.
TWINS = [case for case in CASES if hasattr(F, case.op) or hasattr(torch, case.op)]


@cases_for(TWINS)
def test_runs_the_manual_op(case: OpCase) -> None:
    """To the last bit, every argument included."""
    arguments = case.sample()
    with override():
        found = run(case, torchs(case.op), arguments, lambda y: random_like(y, 1))
    expected = run(case, getattr(functional, case.op), arguments, lambda y: random_like(y, 1))
    assert_identical(found, expected)


def assert_identical(found: Run, expected: Run) -> None:
    for part in ("outputs", "gradients", "buffers"):
        torch.testing.assert_close(
            getattr(found, part), getattr(expected, part), rtol=0, atol=0, equal_nan=True
        )


@cases_for(TWINS)
def test_graph_is_the_manual_ops(case: OpCase) -> None:
    arguments = case.sample()
    for name in case.differentiable:
        arguments[name].requires_grad_()
    expected = first(getattr(functional, case.op)(**arguments))
    with override():
        found = first(torchs(case.op)(**arguments))
    plain = first(torchs(case.op)(**arguments))
    assert by_hand(found) == by_hand(expected)
    assert not by_hand(plain)


def image() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


ONES, ZEROS, LABELS = torch.ones(3), torch.zeros(3), torch.tensor([0, 1, 1])
# What user code writes beside torch.nn.functional's own names, and what it then means.
SPELLINGS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "torch.relu": (lambda x: torch.relu(x), lambda x: functional.relu(x)),
    "method": (lambda x: x.relu(), lambda x: functional.relu(x)),
    "keyword": (lambda x: torch.relu(input=x), lambda x: functional.relu(x)),
    "method with dim": (lambda x: x.softmax(-1), lambda x: functional.softmax(x, -1)),
    "method with dtype": (
        lambda x: x.softmax(1, torch.float64),
        lambda x: functional.softmax(x, 1, dtype=torch.float64),
    ),
    "torch.log_softmax": (
        lambda x: torch.log_softmax(x, dim=1, dtype=torch.float64),
        lambda x: functional.log_softmax(x, 1, dtype=torch.float64),
    ),
    "torch.special.expit": (torch.special.expit, functional.sigmoid),
    "torch.special": (lambda x: torch.special.softmax(x, 1), lambda x: functional.softmax(x, 1)),
    "F.sigmoid": (lambda x: F.sigmoid(x), lambda x: functional.sigmoid(x)),
    "torch.tanh": (lambda x: torch.tanh(x), lambda x: functional.tanh(x)),
    "method log": (lambda x: x.exp().log(), lambda x: functional.log(x.exp())),
    "F.relu_": (lambda x: F.relu_(x * 1), lambda x: functional.relu(x)),
    "inplace": (lambda x: F.relu(x * 1, inplace=True), lambda x: functional.relu(x)),
    "method relu_": (lambda x: (x * 1).relu_(), lambda x: functional.relu(x)),
    "method sigmoid_": (lambda x: (x * 1).sigmoid_(), lambda x: functional.sigmoid(x)),
    "method log_": (
        lambda x: (x.square() + 1).log_(),
        lambda x: functional.log(x.square() + 1),
    ),
    "F.leaky_relu_": (
        lambda x: F.leaky_relu_(x * 1, 0.3),
        lambda x: functional.leaky_relu(x, 0.3),
    ),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, 2), lambda x: functional.max_pool2d(x, 2)),
    "max_pool2d_with_indices": (
        lambda x: F.max_pool2d_with_indices(x, 2)[0],
        lambda x: functional.max_pool2d(x, 2),
    ),
    "return_indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: functional.max_pool2d(x, 2),
    ),
    "torch.dropout": (lambda x: torch.dropout(x, 0.5, True), lambda x: functional.dropout(x)),
    "torch.batch_norm": (
        lambda x: torch.batch_norm(x, ONES, ZEROS, None, None, True, 0.1, 1e-5, False),
        lambda x: functional.batch_norm(x, None, None, ONES, ZEROS, True),
    ),
    "torch.embedding": (
        lambda x: torch.embedding(x.flatten(1), LABELS, 1),
        lambda x: functional.embedding(LABELS, x.flatten(1), 1),
    ),
    "torch.embedding without padding": (
        lambda x: torch.embedding(weight=x.flatten(1), indices=LABELS, padding_idx=-1),
        lambda x: functional.embedding(LABELS, x.flatten(1)),
    ),
    "torch.binary_cross_entropy_with_logits": (
        lambda x: torch.binary_cross_entropy_with_logits(x, torch.ones_like(x), None, None, 2),
        lambda x: functional.binary_cross_entropy_with_logits(
            x, torch.ones_like(x), reduction="sum"
        ),
    ),
    "torch.conv2d": (
        lambda x: torch.conv2d(x, torch.ones(1, 3, 2, 2), padding="same"),
        lambda x: functional.conv2d(x, torch.ones(1, 3, 2, 2), padding="same"),
    ),
    "module": (nn.MaxPool2d(2), lambda x: functional.max_pool2d(x, 2)),
    "module of modules": (
        nn.Sequential(nn.Softplus(), nn.Dropout(p=0.0), nn.Sigmoid()),
        lambda x: functional.sigmoid(functional.softplus(x)),
    ),
}
each_spelling = pytest.mark.parametrize("name", SPELLINGS)


def value_and_gradient(function: Callable[[Tensor], Tensor], context: Any) -> tuple[Tensor, Tensor]:
    x = image().requires_grad_()
    torch.manual_seed(1)
    with context:
        output = function(x)
    output.backward(random_like(output, 2))
    assert x.grad is not None
    return output.detach(), x.grad


@each_spelling
def test_spelling(name: str) -> None:
    spelled, meant = SPELLINGS[name]
    found = value_and_gradient(spelled, override())
    torch.testing.assert_close(found, value_and_gradient(meant, nullcontext()), rtol=0, atol=0)


@each_spelling
def test_spelling_runs_by_hand_inside_only(name: str) -> None:
    spelled, _ = SPELLINGS[name]
    with override():
        assert by_hand(spelled(image().requires_grad_()))
    assert not by_hand(spelled(image().requires_grad_()))


class Recorder:
    """A backend of ``torch.compile`` that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph

    def by_hand(self) -> bool:
        """Whether a hand-written op is in the last graph."""
        nodes = self.graphs[-1].graph.nodes
        return any("autograd_function_apply" in str(node.target) for node in nodes)


def offered_by_dynamo(values: dict[str, Any], function: Callable[[str], Any]) -> list[Any]:
    """Expect failure for what torch does not list as overridable, which Dynamo goes by.

    These are deprecated aliases, in-place functions and some others. Eagerly the function, or
    what it calls, is covered.
    """
    offered = {f for functions in get_overridable_functions().values() for f in functions}
    fails = pytest.mark.xfail(raises=AssertionError, reason="not in get_overridable_functions()")
    return [
        pytest.param(value, id=name, marks=() if function(name) in {*offered, None} else fails)
        for name, value in values.items()
    ]


def named(spelling: str) -> Any:
    """The function of a spelling like ``"F.relu_"``; None for those described otherwise."""
    module, _, name = spelling.partition(".")
    return getattr(F, name, None) if module == "F" else None


@pytest.mark.parametrize("name", offered_by_dynamo({name: name for name in SPELLINGS}, named))
@pytest.mark.usefixtures("fresh_compiler")
def test_spelling_compiled_in_the_context(name: str) -> None:
    spelled, meant = SPELLINGS[name]
    recorder = Recorder()
    compiled = torch.compile(spelled, fullgraph=True, backend=recorder)
    found = value_and_gradient(compiled, override())
    torch.testing.assert_close(found, value_and_gradient(meant, nullcontext()))
    assert recorder.by_hand()
    value_and_gradient(compiled, nullcontext())
    assert not recorder.by_hand()


FIRST_CASES = {case.op: case for case in reversed(TWINS)}


@pytest.mark.parametrize("case", offered_by_dynamo(FIRST_CASES, torchs))
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_in_the_context(case: OpCase) -> None:
    recorder, arguments = Recorder(), case.sample()
    compiled = torch.compile(torchs(case.op), fullgraph=True, backend=recorder)
    for name in case.differentiable:
        arguments[name].requires_grad_()
    with override():
        compiled(**arguments)
    assert recorder.by_hand()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_context_inside_compiled_code(backend: str) -> None:
    def within(x: Tensor) -> Tensor:
        with override(), override():
            return F.relu(x.softmax(-1) @ x.sigmoid().mT - 0.7)

    def by_name(x: Tensor) -> Tensor:
        product = functional.softmax(x, -1) @ functional.sigmoid(x).mT
        return functional.relu(product - 0.7)

    compiled = torch.compile(within, fullgraph=True, backend=backend)
    found = value_and_gradient(compiled, nullcontext())
    torch.testing.assert_close(found, value_and_gradient(by_name, nullcontext()))
    assert not _get_current_function_mode_stack()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_context_covers_its_block_only() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        with override():
            inside = torch.relu(x)
        return inside, torch.sigmoid(x)

    recorder = Recorder()
    torch.compile(function, fullgraph=True, backend=recorder)(image().requires_grad_())
    assert recorder.by_hand()
    targets = [node.target for node in recorder.graphs[-1].graph.nodes]
    assert torch.sigmoid in targets
    assert torch.relu not in targets


def test_torchs_attention_module() -> None:
    """It computes in one function of torch, which is taken over as a whole."""
    module, x = nn.MultiheadAttention(4, 2, batch_first=True), image()[0]
    found = []
    for context in (nullcontext(), override()):
        with CountOps() as ops:
            with context:
                output, weights = module(x, x, x)
            gradients = torch.autograd.grad(output.sum() + weights.sum(), list(module.parameters()))
        found.append((output, weights, gradients))
    torch.testing.assert_close(*found)
    assert not {name for name in ops.calls if "softmax_backward" in name}


def test_nesting_and_exceptions_restore_the_state() -> None:
    x = image().requires_grad_()
    with override():
        with override():
            assert by_hand(x.relu())
        assert by_hand(x.relu())
        with pytest.raises(ZeroDivisionError), override():
            _ = 1 / 0
        assert by_hand(x.relu())
        with pytest.raises(IndexError):
            x.softmax(7)
        assert by_hand(x.relu())
    assert not by_hand(x.relu())
    with pytest.raises(RuntimeError), override():
        F.linear(x, torch.ones(7, 7))
    assert not by_hand(x.relu())
    assert not _get_current_function_mode_stack()


def test_nested_context_runs_the_op_once() -> None:
    x = image().requires_grad_()
    with override(), override():
        output = x.relu()
    assert sum(isinstance(node, BackwardCFunction) for node in nodes(output)) == 1


def test_another_mode_keeps_its_place() -> None:
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    x = image().requires_grad_()
    with override(), Count() as count, override():
        assert by_hand(x.relu())
        assert by_hand(F.softmax(x, 1))
    assert count.calls > 0


def test_other_threads_are_not_affected() -> None:
    x, found = image().requires_grad_(), []
    with override():
        thread = threading.Thread(target=lambda: found.append(by_hand(x.relu())))
        thread.start()
        thread.join()
        assert by_hand(x.relu())
    assert found == [False]


def test_left_to_torch() -> None:
    """Calls with ``out=``, subclasses with an override of their own, every other function."""

    class Named(Tensor):
        pass

    x, result = image(), torch.empty(2, 3, 4, 4)
    with override():
        assert torch.sigmoid(x, out=result) is result
        assert type(x.as_subclass(Named).relu()) is Named
        assert not by_hand(torch.sin(x.requires_grad_()))
    torch.testing.assert_close(result, torch.sigmoid(x))


def test_wrong_calls_raise() -> None:
    x = image()
    with override():
        for call in (lambda: torch.relu(x, 1), lambda: x.softmax(), lambda: x.softmax(1, None, 2)):
            with pytest.raises(TypeError):
                call()


def test_in_place_on_a_leaf_raises() -> None:
    with override(), pytest.raises(RuntimeError, match="leaf Variable"):
        image().requires_grad_().relu_()


def test_in_place_on_integers_raises() -> None:
    """Where the result has no place in them: nothing is cut off."""
    counts = torch.tensor([1, 2, 3])
    with override(), pytest.raises(RuntimeError, match="can't be cast"):
        counts.sigmoid_()
    assert counts.tolist() == [1, 2, 3]


def test_transforms_and_double_backward() -> None:
    def loss(x: Tensor) -> Tensor:
        return (torch.tanh(x).softmax(-1) * x.sigmoid()).square().sum()

    x = image().double()
    transforms = (
        torch.func.grad(loss),
        torch.func.vmap(torch.func.grad(loss)),
        torch.func.jacfwd(torch.func.grad(loss)),
    )
    for transform in transforms:
        with override():
            found = transform(x)
        torch.testing.assert_close(found, transform(x))
    with override():
        assert torch.autograd.gradcheck(loss, x[0, 0].requires_grad_())
        assert torch.autograd.gradgradcheck(loss, x[0, 0].requires_grad_())


def test_backward_inside_the_context_calls_no_backward_kernel() -> None:
    x = image().requires_grad_()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    with override(), CountOps() as ops:
        model(x).square().sum().backward()
    assert x.grad is not None
    assert ops.calls
    assert not [name for name in ops.calls if "backward" in name]


def segment(x: Tensor) -> Tensor:
    return F.softplus(F.linear(x, torch.ones(4, 4))).softmax(-1).sigmoid()


def overridden_segment(x: Tensor) -> Tensor:
    with override():
        return segment(x)


def test_autocast_dtypes_are_torchs() -> None:
    x = image().requires_grad_()
    for function in (lambda: F.linear(x, torch.ones(4, 4)), lambda: F.softmax(x, 1), x.relu):
        with torch.autocast("cpu", torch.bfloat16):
            expected = function()
            with override():
                found = function()
        assert found.dtype == expected.dtype
        assert by_hand(found)


@pytest.mark.parametrize("context", [nullcontext, override])
def test_checkpointed_segment_with_a_context_of_its_own(context: Callable[[], Any]) -> None:
    with CountOps() as ops:
        found = value_and_gradient(
            lambda x: checkpoint(overridden_segment, x, use_reentrant=False), context()
        )
    torch.testing.assert_close(found, value_and_gradient(segment, nullcontext()))
    assert ops.calls.count("softplus") == 2
    assert not [name for name in ops.calls if "backward" in name]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segment_without_one_is_left_to_torch(reentrant: bool) -> None:
    """Or it would be computed by other ops in backward, and saved tensors be mixed up."""
    with CountOps() as ops:
        found = value_and_gradient(
            lambda x: checkpoint(segment, x.relu(), use_reentrant=reentrant), override()
        )
    expected = value_and_gradient(lambda x: segment(x.relu()), nullcontext())
    torch.testing.assert_close(found, expected)
    assert "softplus_backward" in ops.calls
    assert "threshold_backward" not in ops.calls


def test_saved_tensor_hooks_inside_the_context() -> None:
    def offloaded(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return segment(x)

    with CountOps() as ops:
        found = value_and_gradient(offloaded, override())
    torch.testing.assert_close(found, value_and_gradient(segment, nullcontext()))
    assert not [name for name in ops.calls if "backward" in name]


def test_every_function_of_the_library_is_taken_over() -> None:
    """Under the name it has in torch.nn.functional, or else in torch."""
    names = {n for n, op in vars(functional).items() if inspect.isfunction(op) and n[0] != "_"}
    twins = {case.op for case in TWINS}
    assert names - twins == {"linear_relu", "conv2d_relu", "batch_norm_relu_conv2d"}
    for name in twins:
        assert torchs(name) in _ROUTES, name
