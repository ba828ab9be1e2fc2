"""Every module against its torch.nn twin: parameters, results, training, copies, export."""

import copy
import pickle
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from manual_ops import functional
from manual_ops import nn as manual_nn
from manual_ops.testing.draws import Draw, constant, labels, normal, probabilities, spread, uniform


@dataclass(frozen=True)
class ModuleCase:
    """A module's constructor arguments and the inputs it is called with."""

    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Draw, ...] = (spread(4, 5),)

    @property
    def id(self) -> str:
        settings = (
            name if isinstance(value, Tensor) else f"{name}={value}".replace(" ", "")
            for name, value in self.arguments.items()
        )
        return "-".join([self.module, *settings])

    def build(self, namespace: Any, seed: int = 0) -> nn.Module:
        """The module from ``namespace``, in float64, with parameters drawn by ``seed``."""
        torch.manual_seed(seed)
        return getattr(namespace, self.module)(**self.arguments).double()

    def sample(self, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(draw.sample(generator) for draw in self.inputs)


def _cases(module: str, inputs: tuple[Draw, ...], *arguments: dict[str, Any]) -> list[ModuleCase]:
    return [ModuleCase(module, chosen, inputs) for chosen in arguments]


CLASS_LOSS = (normal(5, 4), labels(5, classes=4))
BATCH_NORM_SETTINGS = (
    {"num_features": 3},
    {"num_features": 3, "momentum": None},
    {"num_features": 3, "momentum": 0.3, "eps": 0.1},
    {"num_features": 3, "track_running_stats": False},
    {"num_features": 3, "affine": False},
)
MODULE_CASES: tuple[ModuleCase, ...] = (
    *_cases(
        "Linear",
        (normal(3, 4),),
        {"in_features": 4, "out_features": 2},
        {"in_features": 4, "out_features": 2, "bias": False},
    ),
    ModuleCase("ReLU"),
    ModuleCase("LeakyReLU"),
    ModuleCase("LeakyReLU", {"negative_slope": 0.2}),
    ModuleCase("Sigmoid"),
    ModuleCase("Tanh"),
    ModuleCase("Softplus"),
    ModuleCase("Softplus", {"beta": 2, "threshold": 1.1}),
    ModuleCase("Softmax", {"dim": 1}),
    ModuleCase("LogSoftmax", {"dim": 0}),
    *_cases("NLLLoss", CLASS_LOSS, {}, {"ignore_index": 1}, {"reduction": "none"}),
    *_cases(
        "CrossEntropyLoss",
        CLASS_LOSS,
        {},
        {"weight": torch.tensor([1.0, 2.0, 0.5, 3.0]), "ignore_index": 1, "reduction": "sum"},
        {"label_smoothing": 0.2},
    ),
    ModuleCase("CrossEntropyLoss", {}, (normal(5, 4), constant(probabilities(5, 4, dim=1)))),
    *_cases(
        "LinearCrossEntropyLoss",
        (normal(5, 3), labels(5, classes=4)),
        {"in_features": 3, "num_classes": 4},
        {"in_features": 3, "num_classes": 4, "bias": True, "ignore_index": 1},
        {"in_features": 3, "num_classes": 4, "reduction": "none", "label_smoothing": 0.2},
    ),
    ModuleCase(
        "LinearCrossEntropyLoss",
        {"in_features": 3, "num_classes": 4, "out_features": (2,), "bias": True},
        (normal(5, 3), labels(5, 2, classes=4)),
    ),
    *_cases(
        "BCELoss",
        (uniform(3, 4, low=0.2, high=0.8),) * 2,
        {},
        {"weight": torch.linspace(0.5, 2, 4)},
    ),
    *_cases(
        "BCEWithLogitsLoss",
        (normal(3, 4), uniform(3, 4, low=0.2, high=0.8)),
        {},
        {"pos_weight": torch.tensor([0.5, 1.0, 2.0, 3.0])},
    ),
    *_cases("MSELoss", (normal(3, 4), normal(3, 4)), {}, {"reduction": "none"}),
    *_cases("BatchNorm1d", (normal(5, 3),), *BATCH_NORM_SETTINGS),
    ModuleCase("BatchNorm1d", {"num_features": 3}, (normal(4, 3, 2),)),
    *_cases("BatchNorm2d", (normal(2, 3, 2, 3),), *BATCH_NORM_SETTINGS),
    *_cases(
        "Conv1d",
        (normal(2, 2, 7),),
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3},
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": "same", "bias": False},
        *(
            {
                "in_channels": 2,
                "out_channels": 2,
                "kernel_size": 3,
                "padding": 2,
                "stride": 2,
                "groups": 2,
                "padding_mode": mode,
            }
            for mode in ("zeros", "reflect", "replicate", "circular")
        ),
    ),
    *_cases(
        "Conv2d",
        (normal(2, 2, 5, 6),),
        {"in_channels": 2, "out_channels": 3, "kernel_size": (2, 3)},
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "stride": 2, "bias": False},
        *(
            {
                "in_channels": 2,
                "out_channels": 2,
                "kernel_size": 3,
                "padding": padding,
                "padding_mode": mode,
            }
            for mode in ("zeros", "reflect", "replicate", "circular")
            for padding in ((1, 2), "same")
        ),
    ),
    *_cases(
        "MaxPool2d",
        (spread(1, 2, 5, 5),),
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True},
    ),
    *_cases(
        "AvgPool2d",
        (normal(1, 2, 5, 5),),
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    ),
    ModuleCase("Dropout"),
    ModuleCase("Dropout", {"p": 0.2}),
    *_cases("SyncBatchNorm", (normal(2, 3, 2, 3),), *BATCH_NORM_SETTINGS),
    *_cases(
        "MultiheadAttention",
        (normal(3, 2, 4), normal(5, 2, 4), normal(5, 2, 4)),
        {"embed_dim": 4, "num_heads": 2},
        {"embed_dim": 4, "num_heads": 2, "bias": False, "dropout": 0.2},
        {"embed_dim": 4, "num_heads": 1, "add_bias_kv": True, "add_zero_attn": True},
    ),
    ModuleCase(
        "MultiheadAttention",
        {"embed_dim": 4, "num_heads": 2, "kdim": 3, "vdim": 5, "batch_first": True},
        (normal(2, 3, 4), normal(2, 6, 3), normal(2, 6, 5)),
    ),
    *(ModuleCase(name, {}, (spread(7, 8),)) for name in ("ReLU6", "Hardswish", "Hardsigmoid")),
    ModuleCase("ELU"),
    ModuleCase("ELU", {"alpha": 0.3}),
    ModuleCase("SiLU"),
    ModuleCase("GELU"),
    ModuleCase("GELU", {"approximate": "tanh"}),
    *_cases(
        "LayerNorm",
        (normal(2, 3, 4),),
        {"normalized_shape": 4},
        {"normalized_shape": (3, 4), "eps": 0.1},
        {"normalized_shape": [4], "bias": False},
        {"normalized_shape": 4, "elementwise_affine": False},
    ),
    *_cases(
        "GroupNorm",
        (normal(2, 4, 3, 2),),
        {"num_groups": 2, "num_channels": 4},
        {"num_groups": 4, "num_channels": 4, "affine": False, "eps": 0.1},
    ),
    *_cases(
        "Embedding",
        (labels(3, 4, classes=5),),
        {"num_embeddings": 5, "embedding_dim": 3},
        {"num_embeddings": 5, "embedding_dim": 3, "padding_idx": 2, "scale_grad_by_freq": True},
        {"num_embeddings": 5, "embedding_dim": 3, "max_norm": 0.5, "norm_type": 1.0},
    ),
    *_cases(
        "AdaptiveAvgPool2d",
        (normal(1, 2, 5, 6),),
        {"output_size": 1},
        {"output_size": (2, 3)},
        {"output_size": (None, 4)},
    ),
)
each_module = pytest.mark.parametrize("case", MODULE_CASES, ids=lambda case: case.id)


def call(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Seed, call, and return the outputs as a tuple."""
    torch.manual_seed(1)
    output = module(*inputs)
    return output if isinstance(output, tuple) else (output,)


@each_module
def test_same_class_and_parameters(case: ModuleCase) -> None:
    ours, theirs = case.build(manual_nn), case.build(nn)
    assert isinstance(ours, type(theirs))
    assert type(ours).__module__.startswith("manual_ops")
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@each_module
def test_trains_like_torch(case: ModuleCase) -> None:
    """Five steps: outputs, input gradients, parameters and buffers; then evaluation."""
    ours, theirs = case.build(manual_nn), case.build(nn)
    results = []
    for module in (ours, theirs):
        outputs = []
        parameters = list(module.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
        for step in range(5):
            x, *rest = case.sample(seed=step)
            x.requires_grad_(x.is_floating_point())  # an embedding's input is indices
            output = call(module, (x, *rest))
            output[0].square().sum().backward()
            outputs += [tensor.detach() for tensor in output]
            outputs += [x.grad] if x.requires_grad else []
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        outputs += call(module.eval(), case.sample(seed=9))
        results.append(outputs)
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@each_module
def test_copies_and_state_dicts(case: ModuleCase) -> None:
    ours, theirs = case.build(manual_nn, seed=0), case.build(nn, seed=1)
    inputs = case.sample()
    call(ours, inputs)  # a module that has been used copies like a fresh one
    theirs.load_state_dict(ours.state_dict())
    restored = case.build(manual_nn, seed=2)
    restored.load_state_dict(theirs.state_dict())
    expected = call(ours.eval(), inputs)
    for module in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), theirs, restored):
        torch.testing.assert_close(call(module.eval(), inputs), expected)


@each_module
@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_export(case: ModuleCase, strict: bool) -> None:
    module, inputs = case.build(manual_nn).eval(), case.sample()
    exported = torch.export.export(module, inputs, strict=strict).module()
    torch.testing.assert_close(call(exported, inputs), call(module, inputs))


@pytest.mark.parametrize(
    "case",
    [
        ModuleCase("ReLU", {"inplace": True}),
        ModuleCase("LeakyReLU", {"inplace": True}),
        ModuleCase("LeakyReLU", {"negative_slope": 0.3, "inplace": True}),
        ModuleCase("Dropout", {"inplace": True}),
        *(
            ModuleCase(name, {"inplace": True}, (spread(7, 8),))
            for name in ("ReLU6", "ELU", "SiLU", "Hardswish", "Hardsigmoid")
        ),
    ],
    ids=lambda case: case.id,
)
def test_in_place(case: ModuleCase) -> None:
    """The input becomes the output, its gradient is right, and a leaf is refused."""
    results = []
    for namespace in (nn, manual_nn):
        module = case.build(namespace)
        (x,) = case.sample()
        leaf = x.clone().requires_grad_()
        hidden = leaf * 2
        (output,) = call(module, (hidden,))
        assert output is hidden
        (gradient,) = torch.autograd.grad((output * x).sum(), leaf)
        (changed,) = call(module, (x,))
        assert changed is x
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            call(module, (leaf,))
        results.append((hidden.detach(), gradient, x))
    torch.testing.assert_close(*results)


def network(namespace: Any) -> nn.Module:
    """A small network of most layers, with the same parameters from either namespace."""
    torch.manual_seed(0)
    return namespace.Sequential(
        namespace.Conv2d(1, 4, 3, padding=1),
        namespace.BatchNorm2d(4),
        namespace.ReLU(inplace=True),
        namespace.MaxPool2d(2),
        namespace.Conv2d(4, 6, 3, padding="same"),
        namespace.LeakyReLU(0.1),
        namespace.AvgPool2d(2),
        namespace.Flatten(),
        namespace.Dropout(0.2),
        namespace.Linear(24, 8),
        namespace.BatchNorm1d(8),
        namespace.Tanh(),
        namespace.Linear(8, 5),
    )


def losses(namespace: Any, steps: int = 20) -> Tensor:
    model, loss_of = network(namespace), namespace.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    target = torch.randint(5, (16,), generator=generator)
    curve = []
    for step in range(steps):
        torch.manual_seed(step)  # the same dropout masks
        loss = loss_of(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    return torch.stack(curve)


def test_network_learns_along_the_same_curve() -> None:
    ours = losses(manual_nn)
    torch.testing.assert_close(ours, losses(nn), rtol=1e-3, atol=1e-3)
    assert ours[-1] < ours[0] / 2


def test_other_names_are_torch_nn() -> None:
    assert manual_nn.Sequential is nn.Sequential
    assert manual_nn.Module is nn.Module
    with pytest.raises(AttributeError, match="NoSuchLayer"):
        _ = manual_nn.NoSuchLayer


def test_namespaces_take_the_place_of_torchs() -> None:
    assert manual_nn.functional is functional
    assert import_module("manual_ops.nn.functional") is functional
    assert import_module("manual_ops.nn.parameter").Parameter is nn.Parameter
    assert functional.pad is nn.functional.pad
    assert {"pad", "relu"} <= set(dir(functional))
    with pytest.raises(AttributeError, match="no_such"):
        _ = functional.no_such


@pytest.mark.parametrize("name", manual_nn.__all__)
def test_layers_that_torch_made_are_instances_too(name: str) -> None:
    """As where ``nn`` was torch.nn; a class derived from the layer has none but its own."""
    ours, theirs = getattr(manual_nn, name), getattr(nn, name)
    derived = type(name, (ours,), {})
    made = theirs.__new__(theirs)
    assert isinstance(made, ours)
    assert issubclass(theirs, ours)
    assert issubclass(derived, ours)
    assert not isinstance(made, derived)
    assert not isinstance(ours.__new__(ours), derived)
    assert not isinstance(nn.Identity(), ours)
    assert isinstance(Mock(spec=ours), ours)
    assert isinstance(Mock(spec=derived), derived)


def test_layers_inside_of_torchs_layers_are_found() -> None:
    layer = manual_nn.TransformerEncoderLayer(8, 2, 16)
    found = [name for name, module in layer.named_modules() if isinstance(module, manual_nn.Linear)]
    assert found == ["self_attn.out_proj", "linear1", "linear2"]


def test_a_layer_can_be_mixed_with_an_abstract_class() -> None:
    class Counted(manual_nn.Linear, Sized):
        def __len__(self) -> int:
            return self.out_features

    assert len(Counted(2, 3)) == 3
    assert not isinstance(nn.Linear(2, 3), Counted)


def test_attention_is_torchs_package() -> None:
    """Beside it no module of ours of that name."""
    assert manual_nn.attention is nn.attention
