"""``compare``: a model on native autograd beside the same on hand-written ops."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manual_ops
from manual_ops import compare


class Functional(nn.Module):
    """Layers, a functional call, a random one, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.out = nn.Linear(12, 5)

    def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
        hidden = F.max_pool2d(F.gelu(self.norm(self.conv(images))), 2)
        return self.out(F.dropout(hidden.flatten(1) * scale))


IMAGES, LABELS = torch.randn(6, 1, 6, 6), torch.arange(6) % 5


def test_rounding_alone() -> None:
    model = Functional()
    before = copy.deepcopy(model.state_dict())
    found = compare(model, IMAGES, LABELS)

    names = {name: tuple(p.shape) for name, p in model.named_parameters()} | {
        "input 0": tuple(IMAGES.shape)
    }
    assert {row.name: row.shape for row in found.rows} == names
    relative = [row.relative for row in found.rows]
    assert relative == sorted(relative, reverse=True)
    assert 0 < relative[0] < 1e-5
    assert found.loss[0] == pytest.approx(found.loss[1], rel=1e-6)
    assert found.dtypes == (torch.float32,)
    assert not found.native
    assert {layer.kind for layer in found.conversion.converted} == {
        "Conv2d",
        "BatchNorm2d",
        "Linear",
    }
    # The model is as it was.
    assert type(model.conv) is nn.Conv2d
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_float64_rounding_vanishes() -> None:
    found = compare(Functional(), IMAGES, LABELS, dtype=torch.float64)
    assert found.rows[0].relative < 1e-12
    assert found.dtypes == (torch.float64,)


def test_a_wrong_layer_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        weight = self.weight * 1.01 - self.weight.detach() * 0.01  # the value, not the gradient
        return input @ weight.T + self.bias

    monkeypatch.setattr(manual_ops.nn.Linear, "forward", forward)
    first, *others = compare(Functional(), IMAGES, LABELS).rows
    assert (first.name, first.shape) == ("out.weight", (5, 12))
    assert first.relative == pytest.approx(0.01, rel=1e-3)
    assert others[0].relative < 0.02  # what lies before it sees the weight alone


def test_a_missing_gradient_differs_infinitely(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias.detach()

    monkeypatch.setattr(manual_ops.nn.Linear, "forward", forward)
    first = compare(Functional(), IMAGES, LABELS).rows[0]
    assert (first.name, first.relative) == ("out.bias", math.inf)


def test_a_converted_model_is_compared_with_torch() -> None:
    converted = manual_ops.convert(Functional()).model
    found = compare(converted, IMAGES, LABELS)
    assert len(found.conversion.converted) == 3
    assert 0 < found.rows[0].relative < 1e-5
    assert type(converted.conv) is manual_ops.nn.Conv2d


def test_what_stays_native_is_named() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 3))
    found = compare(model, torch.randn(4, 1, 3, 3, 3), torch.randn(4, 3), F.mse_loss)
    assert dict(found.native) == {"convolution_backward": 1}
    text = str(found)
    assert "left alone: Conv3d" in text
    assert "convolution_backward (1)" in text
    assert "2.weight [3, 16]" in text
    assert "2.weight [3, 16]" in found._repr_html_()


@pytest.mark.parametrize("inputs", [(IMAGES, 0.5), {"images": IMAGES, "scale": 0.5}])
def test_several_inputs(inputs: object) -> None:
    found = compare(Functional(), inputs, LABELS)
    assert found.rows[0].relative < 1e-5
    assert "input 0" in {row.name for row in found.rows}


def test_wrong_calls() -> None:
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got int"):
        compare(3, IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"loss to return a scalar, got shape \[6, 5\]"):
        compare(Functional(), IMAGES, LABELS, lambda output, _: output)
