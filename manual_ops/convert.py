"""Put hand-written layers into an existing model: convert, revert, override.

``convert`` changes the class of a layer and nothing else, so whatever refers to the layer or to
its parameters (optimizers, hooks, tied weights, ``DistributedDataParallel``) goes on doing so.
What is swapped is what ``manual_ops.nn.__all__`` names, what is overridden is what
``manual_ops.functional`` holds: a new layer or function takes part without an edit here.

Order, where a model is also wrapped or rewritten by others:

* ``.to()``, ``.train()``, optimizers, ``torch.compile``: before or after. ``inplace=False`` makes a
  ``copy.deepcopy`` first, with what follows from that: an optimizer made before holds the
  parameters of the original, and hooks on tensors (not on modules) and gradients stay there.
* ``DistributedDataParallel``: convert, then wrap; or afterwards with ``inplace=True``.
* ``fully_shard``: convert, then shard; or afterwards with ``inplace=True`` (a sharded model cannot
  be deep-copied). A layer that is sharded as a unit of its own has a class of its own by then and
  is left alone.
* ``SyncBatchNorm.convert_sync_batchnorm``: call it first, then convert; it builds torch.nn's layer
  from any batch norm.
* ``parametrize.register_parametrization``: convert, then parametrise. A lazy layer: convert after
  the first forward has given it its class.
* ``torch.fx`` (``create_feature_extractor``): trace, then convert the traced model; its tracer
  knows torch.nn's own layers only. ``torch.export`` takes converted models.

With ``fuse=True`` fused ops run neighbouring layers: ``_fusion.py`` says which, and how. The code
that calls them is traced once, as by ``torch.fx``: what it decides by the values of attributes is
decided for good (a piece that asks for ``self.training``, or does what a trace does not show, is
left alone). Where its layers are later replaced, or get hooks, it runs its own code again. Fuse
after ``fully_shard``.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from . import nn as manual_nn
from ._compare import Difference, largest_differences
from ._fusion import Piece, fuse_layers, separate_layers
from ._override import override as override

_log = logging.getLogger(__name__)

_MANUAL: dict[type, type] = {
    getattr(nn, name): getattr(manual_nn, name) for name in manual_nn.__all__ if hasattr(nn, name)
}
_TORCH: dict[type, type] = {manual: twin for twin, manual in _MANUAL.items()}

# Files of torch.nn.modules whose classes hold other modules or only move, pad or resize data.
_NO_LAYERS = (
    *("channelshuffle", "container", "flatten", "fold", "module", "padding", "pixelshuffle"),
    "upsampling",
)


@dataclass(frozen=True)
class Layer:
    """One module of a model: its name in it, its class, and what became of it."""

    name: str
    kind: str
    note: str


@dataclass(frozen=True)
class Report:
    """What ``convert`` or ``revert`` did, or would do; prints as a few lines.

    Layers are the modules of torch.nn, and of subclasses, that carry parameters or compute; not
    containers, nor what only moves, pads or resizes data.

    Attributes:
        converted: Layers whose class changed; the note is the new class.
        already: Layers that had been converted before.
        left: Layers left alone; the note says why.
        other: Modules of other classes that hold parameters themselves. Functional calls in their
            code run hand-written ops inside :func:`override`.
        fused: What fused ops run: the layers' names, the op, and where; if asked for.
        unfused: Modules whose code could not be rewritten; the note says why. Their parts were
            looked at one by one.
        verb: "converted" or "reverted".
        differences: Largest difference of ``"outputs"``, ``"gradients"`` and ``"buffers"`` from
            the original, if verified.
    """

    converted: tuple[Layer, ...] = ()
    already: tuple[Layer, ...] = ()
    left: tuple[Layer, ...] = ()
    other: tuple[Layer, ...] = ()
    fused: tuple[Layer, ...] = ()
    unfused: tuple[Layer, ...] = ()
    verb: str = "converted"
    differences: Mapping[str, Difference] | None = None

    @property
    def share(self) -> float:
        """Converted layers, now or before, among all layers; 1 where there is none."""
        done = len(self.converted) + len(self.already)
        return done / (done + len(self.left)) if done + len(self.left) else 1.0

    def __str__(self) -> str:
        done = len(self.converted) + len(self.already)
        kinds = Counter(layer.kind for layer in self.converted)
        lines = [
            f"{done} of {done + len(self.left)} layers {self.verb} ({self.share:.1%}), "
            f"{len(self.already)} of them before",
            *(f"  {count:4d} {kind}" for kind, count in kinds.most_common()),
        ]
        groups = {
            "left alone": self.left,
            "code of its own": self.other,
            "fused": self.fused,
            "not fused across": self.unfused,
        }
        for title, layers in groups.items():
            lines += [f"{title}: {group}" for group in _grouped(layers)]
        for what, difference in (self.differences or {}).items():
            lines.append(f"largest difference of {what}: {difference}")
        return "\n".join(lines)


def _grouped(layers: Iterable[Layer]) -> Iterator[str]:
    """One line for the layers of one kind and note, with the names of the first three."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.note), []).append(layer.name)
    for (kind, note), names in groups.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{kind}{f' ({note})' if note else ''}: {', '.join(names[:3])}{more}"


class Conversion(NamedTuple):
    """The model and what was done to it."""

    model: nn.Module
    report: Report


def convert(
    model: nn.Module,
    inplace: bool = False,
    *,
    fuse: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    inputs: Any = None,
) -> Conversion:
    """Give every torch.nn layer of ``model`` its hand-written class.

    Only layers whose class is exactly one that ``manual_ops.nn`` has are changed. Subclasses,
    parametrised layers and layers with a ``forward`` of their own are left alone, because their
    code may not be what the hand-written class replaces. Parameters, buffers, hooks, training
    flags, shared layers and tied weights are untouched: only ``__class__`` is set. Converting
    twice changes nothing.

    Args:
        model: Any module, also a single layer.
        inplace: Change ``model`` itself instead of a deep copy; also for a model that cannot be
            copied (it holds tensors that are no leaves, or is sharded).
        fuse: Also let fused ops run neighbouring layers (batch norm, rectifier and convolution;
            linear and rectifier; linear and cross-entropy; ...), for fewer bytes saved for
            backward and fewer passes over memory. The results are the same up to rounding.
        dry_run: Change nothing; the report lists what would change.
        verify: Run a copy of the model as it was and a converted one on ``inputs``, with the same
            random numbers, and report the largest differences of outputs, gradients (of
            parameters and inputs) and buffers. ``model`` itself is not run.
        inputs: What ``verify`` calls the model with: a tensor, a tuple of positional arguments or
            a dict of keyword arguments.

    Returns:
        ``(model, report)``: the converted model (``model`` itself on a dry run) and a
        :class:`Report`. The report is also logged, as a warning where layers were left alone.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``verify`` without ``inputs``, or ``inputs`` without ``verify``.
    """
    if verify != (inputs is not None):
        raise ValueError(
            "convert expects inputs exactly when verify=True, got "
            f"verify={verify} and inputs of type {type(inputs).__name__}"
        )
    differences = None
    if verify:
        original, converted = copy.deepcopy(_checked(model)), copy.deepcopy(model)
        _swap(converted, _MANUAL, dry_run=False)
        if fuse:
            fuse_layers(converted)
        differences = largest_differences(converted, original, inputs)
    return _run(model, _MANUAL, inplace, dry_run, fuse, differences)


def revert(model: nn.Module, inplace: bool = False, *, dry_run: bool = False) -> Conversion:
    """Give every hand-written layer of ``model`` its torch.nn class; undoes :func:`convert`.

    Args:
        model: Any module, also one built from ``manual_ops.nn`` in the first place.
        inplace: Change ``model`` itself instead of a deep copy.
        dry_run: Change nothing; the report lists what would change.

    Returns:
        ``(model, report)`` as :func:`convert`; in the report ``converted`` are the layers that
        became torch.nn's.

    Raises:
        TypeError: ``model`` is not a module.
    """
    return _run(model, _TORCH, inplace, dry_run)


def _run(
    model: nn.Module,
    classes: dict[type, type],
    inplace: bool,
    dry_run: bool,
    fuse: bool = False,
    differences: Mapping[str, Difference] | None = None,
) -> Conversion:
    target = _checked(model) if inplace or dry_run else copy.deepcopy(_checked(model))
    if (fuse or classes is _TORCH) and not dry_run:
        separate_layers(target)
    report = replace(_swap(target, classes, dry_run), differences=differences)
    if fuse:
        pieces = fuse_layers(_converted_copy(target) if dry_run else target)
        fused, unfused = _fusions(pieces)
        report = replace(report, fused=fused, unfused=unfused)
    level = logging.WARNING if report.left else logging.INFO
    _log.log(level, "%s%s", "dry run: " if dry_run else "", report)
    return Conversion(target, report)


def _converted_copy(model: nn.Module) -> nn.Module:
    converted = copy.deepcopy(model)
    separate_layers(converted)
    _swap(converted, _MANUAL, dry_run=False)
    return converted


def _fusions(pieces: list[Piece]) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """Return what was fused, and where it could not be, as the report has it."""
    fused = (
        Layer(" + ".join(f"{piece.name}.{n}".lstrip(".") for n in run.layers), run.op, "")
        for piece in pieces
        for run in piece.runs
    )
    unfused = (Layer(p.name or "(model)", p.kind, p.obstacle) for p in pieces if p.obstacle)
    return tuple(fused), tuple(unfused)


def _checked(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    return model


def _swap(model: nn.Module, classes: dict[type, type], dry_run: bool) -> Report:
    """Set the class of every layer that ``classes`` names, unless on a dry run."""
    converting = classes is _MANUAL
    finished = frozenset(classes.values())
    converted, already, left, other = [], [], [], []
    inside: set[nn.Module] = set()  # a swapped layer's forward runs what it holds by itself
    for name, module in list(model.named_modules()):
        if module in inside:
            continue
        kind = type(module)
        layer = Layer(name or "(model)", kind.__name__, "")
        if kind in finished:
            already.append(layer)
            inside.update(module.modules())
        elif kind in classes and "forward" not in vars(module):
            converted.append(replace(layer, note=_public_name(classes[kind])))
            inside.update(module.modules())
            if not dry_run:
                module.__class__ = classes[kind]
        elif not classes.keys().isdisjoint(kind.__mro__) or (converting and _is_layer(module)):
            left.append(replace(layer, note=_reason(module)))
        elif converting and _has_parameters(module):
            other.append(replace(layer, note=f"parameters held by {_public_name(kind)}"))
    verb = "converted" if converting else "reverted"
    return Report(tuple(converted), tuple(already), tuple(left), tuple(other), verb=verb)


def _is_layer(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch.nn's that computes, or derives from one."""
    base = _torch_class(module)
    if base is nn.Identity or base.__module__.rpartition(".")[2] in _NO_LAYERS:
        return False
    return _has_parameters(module) or next(module.children(), None) is None


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _reason(module: nn.Module) -> str:
    if parametrize.is_parametrized(module):
        return "parametrised: " + ", ".join(module.parametrizations)  # type: ignore[arg-type]
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if isinstance(module, LazyModuleMixin):
        return "lazy: convert it after the first forward"
    if type(module) is _torch_class(module):
        return "no hand-written version"
    known = (c for c in type(module).__mro__[1:] if c in _TORCH or _is_torchs(c))
    return f"subclass of {_public_name(next(known))}"


def _torch_class(module: nn.Module) -> type:
    return next(filter(_is_torchs, type(module).__mro__))


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.modules.")


def _public_name(kind: type) -> str:
    if kind in _TORCH:
        return f"manual_ops.nn.{kind.__name__}"
    return f"torch.nn.{kind.__name__}" if _is_torchs(kind) else f"{kind.__module__}.{kind.__name__}"
