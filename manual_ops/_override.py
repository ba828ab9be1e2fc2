"""Run hand-written ops where code calls ``torch.nn.functional``, torch or a tensor's methods."""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from . import functional

Op = Callable[..., Any]


def override() -> AbstractContextManager[Any]:
    """Return a context in which torch's own functions run the hand-written ops.

    Whatever ``manual_ops.functional`` holds is taken over under each of its names:
    ``F.softmax(x, 1)``, ``torch.softmax(x, 1)``, ``x.softmax(1)``, and in place ``F.relu_(x)``,
    ``x.sigmoid_()``. torch.nn's modules, which call these, are covered as well, and so is code
    compiled by ``torch.compile``, with the context around it or inside. Everything else of torch
    is untouched. The context counts for the thread that enters it; entered again inside itself
    it changes nothing.

    Left to torch: calls with ``out=``, which autograd refuses anyway; tensor subclasses with a
    ``__torch_function__`` of their own; what a function of torch calls inside itself
    (``F.gumbel_softmax``); in compiled code also what ``torch.overrides`` does not list as
    overridable: ``F.sigmoid``, ``F.tanh`` (but ``torch.sigmoid`` it does), ``F.hardsigmoid``,
    ``F.hardswish``, ``F.relu_`` and the like (but ``x.relu_()``). There, convert the layer.

    An activation checkpoint computes its segment again during backward, when this context is long
    left. Enter it inside the segment; one that does not is left to torch both times. Where a
    context like this one is open, ``nn.TransformerEncoder`` does not take its fast path for
    evaluation, which alone gives zeros at padded positions.
    """
    checkpoint = _checkpoint()
    for mode in _get_current_function_mode_stack():
        # A second mode on the stack would take over the calls that the hand-written op makes.
        if isinstance(mode, _Override) and mode.checkpoint is checkpoint:
            return nullcontext()
    return _Override(checkpoint)


class _Override(TorchFunctionMode):
    def __init__(self, checkpoint: Op | None) -> None:
        super().__init__()
        self.checkpoint = checkpoint

    def __torch_function__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        route = _ROUTES.get(func)
        if (
            route is None
            or "out" in kwargs
            or not all(kind is Tensor for kind in types)
            or _checkpoint() not in (None, self.checkpoint)
        ):
            return func(*args, **kwargs)
        return route(*args, **kwargs)


# New in torch 2.8; before, a checkpoint around a segment that calls override() cannot be told
# from one inside of override().
_top_hooks: Op | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def _checkpoint() -> Op | None:
    """Identify the innermost activation checkpoint that is recording or recomputing."""
    if torch.compiler.is_compiling() or _top_hooks is None:
        return None
    pack, _unpack = _top_hooks(False) or (None, None)
    return pack if getattr(pack, "__module__", None) == "torch.utils.checkpoint" else None


def _routes() -> dict[Op, Op]:
    """Map each of torch's functions to the hand-written op that is called in its place."""
    routes: dict[Op, Op] = {}

    def add(namespace: Any, name: str, op: Op | None) -> None:
        if op is not None and hasattr(namespace, name):
            routes.setdefault(getattr(namespace, name), op)

    for name, op in vars(functional).items():
        if not inspect.isfunction(op) or name.startswith("_"):
            continue
        add(torch_functional, name, op)
        add(torch_functional, f"{name}_", _in_place(op))
        add(torch_functional, f"{name}_with_indices", _with_indices(op))
        adapted = _adapted(op, name)
        for namespace in (torch, Tensor, torch.special):
            add(namespace, name, adapted)
            add(namespace, f"{name}_", adapted and _in_place(adapted))
    add(torch.special, "expit", _adapted(functional.sigmoid, "sigmoid"))  # another name of it
    add(torch, "embedding", _torch_embedding)
    return routes


# ATen's names for parameters that torch.nn.functional calls otherwise, or does not have.
_FUNCTIONAL_NAMES = {
    "self": "input",
    "train": "training",
    "cudnn_enable": None,
    "cudnn_enabled": None,
}


_REDUCTIONS = ("none", "mean", "sum")  # by ATen's numbers


def _adapted(op: Op, name: str) -> Op | None:
    """Return ``op`` with the parameters of ``torch.<name>``, None where they mean other things.

    The two orders differ (``x.softmax(1, dtype)``, ``torch.batch_norm``), therefore ATen's
    schema is asked for the names and the op is called by keyword.
    """
    accepted = {*inspect.signature(op).parameters, None}
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if packet else ():
        schema = getattr(packet, overload)._schema
        names = [_FUNCTIONAL_NAMES.get(a.name, a.name) for a in schema.arguments]
        if accepted.issuperset(names):
            return _by_keyword(op, names)
    return None


def _by_keyword(op: Op, names: Iterable[str | None]) -> Op:
    names = tuple(names)

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"expected at most {len(names)} arguments, got {len(args)}")
        given = dict(zip(names, args, strict=False))
        given.update({_FUNCTIONAL_NAMES.get(k, k): v for k, v in kwargs.items()})
        if isinstance(given.get("reduction"), int):
            given["reduction"] = _REDUCTIONS[given["reduction"]]
        return op(**{k: v for k, v in given.items() if k is not None})

    return call


def _torch_embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    # A negative padding_idx means none, where torch.nn.functional counts from the end.
    padding = None if padding_idx < 0 else padding_idx
    settings = {"scale_grad_by_freq": scale_grad_by_freq, "sparse": sparse}
    return functional.embedding(indices, weight, padding, **settings)


def _with_indices(op: Op) -> Op:
    # Torch hands its keyword over as well, which means nothing there.
    return lambda *args, return_indices=True, **kwargs: op(*args, **kwargs, return_indices=True)


def _in_place(op: Op) -> Op:
    if "inplace" in inspect.signature(op).parameters:
        return partial(op, inplace=True)

    def overwrite(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = op(input.clone(), *args, **kwargs)  # the op may save its input for backward
        fits = input.is_floating_point() or input.is_complex() or not output.is_floating_point()
        if not fits:
            raise RuntimeError(
                f"result type {output.dtype} can't be cast to the desired output type {input.dtype}"
            )
        return input.copy_(output)

    return overwrite


_ROUTES = _routes()
