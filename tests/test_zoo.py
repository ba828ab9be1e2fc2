"""Published classifiers learn the same on hand-written gradients; the models are in zoo.py."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.zoo import FAMILIES, ExactHardsigmoid, compare, gradient_error, loss_error

# The transposes of indexing, which belong to no layer.
DATA_MOVEMENT = {"select_backward", "slice_backward"}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, record_property: Callable[[str, object], None]) -> None:
    family = FAMILIES[name]
    found = compare(family)

    record_property("share of layers converted", f"{found.report.share:.1%}")
    assert found.report.converted
    assert {layer.kind for layer in found.report.left} == family.subclasses
    assert all(layer.note.startswith("subclass of") for layer in found.report.left)

    for ours in (found.converted, found.overridden, found.fused):
        assert loss_error(ours, found.original) <= 1e-9
        assert gradient_error(ours, found.original) <= 1e-9
    kernels = {name for name in found.overridden.calls if "backward" in name}
    assert kernels <= DATA_MOVEMENT, "with override() no layer is left to torch"


def test_torchs_hardsigmoid_is_inexact() -> None:
    """Should this fail, torch has mended it and ``ExactHardsigmoid`` can go."""
    for context, exact in ((nullcontext(), False), (ExactHardsigmoid(), True)):
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        with context:
            nn.functional.hardsigmoid(x).backward()
        assert (abs(x.grad - 1 / 6) < 1e-12) == exact


def test_as_many_families_as_promised() -> None:
    assert sum(not name.startswith("timm") for name in FAMILIES) >= 20
