"""What is seen of a graph from outside."""

import pytest
import torch
from torch.autograd import Function

from manual_ops.check.graph import (
    AtenCalls,
    argument_names,
    function_name,
    function_nodes,
    pull_back,
    recorded,
    saving,
    tensors_on,
)
from tests.check.right_ops import LINEAR, Exp, Linear, Product, ReLU, normal


def leaf(*shape: int) -> torch.Tensor:
    return normal(*shape).requires_grad_()


def test_functions_are_found_wherever_they_are() -> None:
    y = (ReLU.apply(Exp.apply(leaf(3)) * 2) + 1).sum()
    assert {function_name(node) for node in function_nodes([y])} == {"Exp", "ReLU"}


def test_functions_of_torch_are_passed_over() -> None:
    y = torch.utils.checkpoint.checkpoint(Exp.apply, leaf(3), use_reentrant=True)
    assert function_nodes([y]) == []


@pytest.mark.parametrize(
    ("function", "inputs", "names"),
    [(Linear, LINEAR, ["x", "weight", "bias"]), (Product, LINEAR[2:] * 2, ["a", "b"])],
    ids=["without ctx", "with ctx"],
)
def test_arguments_have_the_names_of_forward(
    function: type[Function], inputs: tuple[torch.Tensor, ...], names: list[str]
) -> None:
    output = function.apply(*(t.clone().requires_grad_() for t in inputs))
    assert argument_names(output.grad_fn) == names


class KeepsTensors(Exp):
    @staticmethod
    def setup_context(ctx, inputs, output):
        (x,) = inputs
        ctx.shape = x.shape
        ctx.pair = [3, {"x": x}]
        ctx.later = lambda: x + 1


def test_tensors_on_ctx_are_found_in_containers_and_closures() -> None:
    (node,) = function_nodes([KeepsTensors.apply(leaf(3))])
    places = [place for place, _ in tensors_on(node)]
    assert places == ["ctx.pair[1]['x']", "ctx.later (closure over x)"]


def test_backward_is_as_before_once_recorded() -> None:
    class Twin(Exp):  # inherits backward
        pass

    own = vars(Exp)["backward"]
    y = Twin.apply(leaf(3)) + Exp.apply(leaf(3))
    with recorded(function_nodes([y])) as calls:
        y.sum().backward()
    assert sorted(function_name(call.node) for call in calls) == ["Exp", "Twin"]
    assert vars(Exp)["backward"] is own
    assert "backward" not in vars(Twin)


def test_wasted_calls() -> None:
    a, b = normal(3, 3), normal(3, 3, seed=1)
    with AtenCalls() as calls:
        product = a @ b
        product.mT  # a view costs nothing  # noqa: B018
        torch.empty_like(a)
        c = a.clone()
        c.add_(product)  # a clone that is written to is used
        b.exp().sum()
        (a > 0).any().item()  # may decide what is computed
    assert calls.wasted([c]) == ["exp", "sum"]
    assert calls.wasted([product]) == ["clone", "add_", "exp", "sum"]


def test_saved_bytes_count_each_storage_once() -> None:
    x = leaf(4, 4)
    with saving() as saved:
        y = x[0] * x[1]
    assert len(saved.tensors) == 2
    assert saved.bytes() == x.untyped_storage().nbytes()
    assert torch.equal(pull_back([y], [x], [torch.ones(4)])[0][0], x[1])
    assert saved.reads == [1, 1]
