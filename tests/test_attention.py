"""Attention on long sequences, with one tensor in all roles, and inside torch's modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from manual_ops import functional
from manual_ops import nn as manual_nn
from tests.harness import random_like


def gradients(op: Callable[..., Tensor], tensors: list[Tensor], **settings: Any) -> list[Tensor]:
    torch.manual_seed(0)
    output = op(*tensors, **settings)
    return [output, *torch.autograd.grad(output, tensors, random_like(output, 1))]


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [random_like(torch.empty(s, dtype=torch.float64), i) for i, s in enumerate(shapes)]


LONG: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": torch.rand(300, 900, generator=torch.Generator().manual_seed(0)) < 0.5},
    "dropout": {"dropout_p": 0.2},
}


@pytest.mark.parametrize("settings", LONG.values(), ids=LONG)
def test_many_blocks(settings: dict[str, Any]) -> None:
    """Backward in many blocks of samples, heads, queries and keys is backward in one."""
    tensors = [t.requires_grad_() for t in leaves((3, 2, 300, 4), (3, 2, 900, 4), (3, 2, 900, 6))]
    found = gradients(functional.scaled_dot_product_attention, tensors, **settings)
    expected = gradients(F.scaled_dot_product_attention, tensors, **settings)
    torch.testing.assert_close(found, expected)


def test_many_blocks_of_shared_heads_and_masks() -> None:
    shapes = (2, 4, 200, 4), (2, 2, 700, 4), (2, 2, 700, 4), (2, 1, 200, 700)
    tensors = [tensor.requires_grad_() for tensor in leaves(*shapes)]
    with sdpa_kernel(SDPBackend.MATH):
        expected = gradients(F.scaled_dot_product_attention, tensors, enable_gqa=True)
    found = gradients(functional.scaled_dot_product_attention, tensors, enable_gqa=True)
    torch.testing.assert_close(found, expected)


def test_mask_of_a_batch_that_the_query_broadcasts_to() -> None:
    """Also in groups of heads, where the mask has the query's heads but not its batch."""
    tensors = [t.requires_grad_() for t in leaves((1, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 5))]
    (mask,) = leaves((2, 4, 3, 6))
    settings = {"attn_mask": mask, "enable_gqa": True}
    found = gradients(functional.scaled_dot_product_attention, tensors, **settings)
    expected = gradients(F.scaled_dot_product_attention, tensors, **settings)
    torch.testing.assert_close(found, expected)


def saved_bytes(function: Callable[[], Any]) -> int:
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("settings", LONG.values(), ids=LONG)
@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_saves_inputs_and_mask_alone(settings: dict[str, Any], asked: tuple[int, ...]) -> None:
    tensors = leaves((2, 2, 300, 8), (2, 2, 900, 8), (2, 2, 900, 8))
    for index in asked:
        tensors[index].requires_grad_()
    ours, theirs = (
        saved_bytes(lambda op=op: op(*tensors, **settings))
        for op in (functional.scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    inputs = sum(tensor.nbytes for tensor in tensors)
    masks = 2 * 2 * 300 * 900 if "dropout_p" in settings else 0
    masks += 300 * 900 if "attn_mask" in settings else 0
    assert ours <= inputs + masks
    assert ours <= theirs


def test_needs_weights_saves_no_weights() -> None:
    ours, theirs = (
        namespace.MultiheadAttention(8, 2, dropout=0.0) for namespace in (manual_nn, nn)
    )
    x = torch.randn(300, 1, 8)
    assert saved_bytes(lambda: ours(x, x, x)) < saved_bytes(lambda: theirs(x, x, x)) / 4


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 3, 4)], ids=str)
def test_one_tensor_in_all_roles(fresh_compiler: None, shape: tuple[int, ...]) -> None:
    """Dynamo refuses a Function to which one tensor is passed twice."""
    x = leaves(shape)[0].requires_grad_()

    def attend(op: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: op(x, x, x)

    expected = gradients(attend(F.scaled_dot_product_attention), [x])
    ours = attend(functional.scaled_dot_product_attention)
    torch.testing.assert_close(gradients(ours, [x]), expected)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, [x]), expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_compiled_self_attention(fresh_compiler: None, batch_first: bool) -> None:
    module = manual_nn.MultiheadAttention(4, 2, batch_first=batch_first).double()
    x = leaves((2, 3, 4))[0].requires_grad_()
    function = torch.compile(lambda x: module(x, x, x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        gradients(function, [x]), gradients(lambda x: module(x, x, x)[0], [x])
    )


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("roles", ["self", "encoder", "all"])
def test_roles_and_hints(roles: str, is_causal: bool, need_weights: bool) -> None:
    """What is the same tensor is projected at once; the causal hint takes the mask's place."""
    results = []
    for namespace in (nn, manual_nn):
        torch.manual_seed(0)
        module = namespace.MultiheadAttention(4, 2, batch_first=True).double()
        query, key, value = (t.requires_grad_() for t in leaves(*[(2, 5, 4)] * 3))
        if roles != "all":
            value = key
        if roles == "self":
            query = key
        mask = torch.ones(5, 5).triu(1).bool() if is_causal else None
        output, weights = module(
            query, key, value, need_weights=need_weights, attn_mask=mask, is_causal=is_causal
        )
        assert (weights is not None) == need_weights
        results.append([output, *([weights] if need_weights else [])])
        results[-1] += torch.autograd.grad(
            sum(t.sin().sum() for t in results[-1]), [key, *module.parameters()]
        )
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("masked", [False, True], ids=["all_keys", "masked"])
def test_inside_transformer_encoder_layer(norm_first: bool, training: bool, masked: bool) -> None:
    """Torch's layer with our attention in place of its own, in training and by its fast path."""
    results = []
    x = leaves((2, 5, 4))[0].requires_grad_()
    padding = torch.tensor([[False] * 4 + [True], [False] * 5]) if masked else None
    for namespace in (nn, manual_nn):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            4, 2, 8, dropout=0.1, batch_first=True, norm_first=norm_first
        ).double()
        attention = namespace.MultiheadAttention(4, 2, dropout=0.1, batch_first=True).double()
        attention.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = attention
        layer.train(training)
        torch.manual_seed(1)
        output = layer(x, src_key_padding_mask=padding)
        results.append([output, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])])
        with torch.no_grad():
            results[-1].append(layer.eval()(x, src_key_padding_mask=padding))
    torch.testing.assert_close(*results)


def test_query_without_keys_has_no_weights() -> None:
    """Torch's gives NaN here, with ``need_weights`` set."""
    module = manual_nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 1, 4, requires_grad=True)
    mask = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
    output, weights = module(x, x, x, attn_mask=mask)
    assert (weights[0, 1] == 0).all()
    torch.testing.assert_close(output[1, 0], module.out_proj.bias)
    (gradient,) = torch.autograd.grad(output.sum() + weights.square().sum(), x)
    assert gradient.isfinite().all()
