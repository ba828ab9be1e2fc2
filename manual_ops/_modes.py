"""What watches the arithmetic of a backward pass: higher orders, forward mode, Dynamo, vmap."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

Table = TypeVar("Table")

_TRACING = torch._C._TorchDispatchModeKey.PROXY


def may_overwrite(grad_output: Tensor) -> bool:
    """Whether a backward may work in place on its own fresh temporaries.

    True for plain first-order eager backward. False where another layer watches the arithmetic:
    a graph is being built on it (double backward), Dynamo or ``make_fx`` traces it, forward mode
    carries tangents through it, or ``grad_output`` is a batch of vectors (a temporary that does not
    depend on it is too small to hold the result).
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or forward_ad_active()
        or torch._C._get_dispatch_mode(_TRACING) is not None
        or torch._C._functorch.is_functorch_wrapped_tensor(grad_output)
        or torch._C._functorch.is_legacy_batchedtensor(grad_output)
    )


def is_dispatch_watched() -> bool:
    """Whether a mode sees each operation, and may keep its result: no place to write then."""
    return torch._C._len_torch_dispatch_stack() > 0


def write_below(target: Tensor, value: Tensor) -> None:
    """``target.copy_(value)``, also where torch.func only finds ``target`` outside of the function.

    ``grad`` and ``jvp`` refuse to write to what they do not differentiate by. A kernel of ATen that
    updates its arguments does so below them, and so does this. (Not inside ``torch.compile``.)
    """
    compiling = torch.compiler.is_compiling()
    transform = None if compiling else torch._C._functorch.peek_interpreter_stack()
    if (
        transform is None
        or transform.key() is torch._C._functorch.TransformType.Vmap
        or torch._C._functorch.maybe_get_level(target) == transform.level()
    ):
        target.copy_(value)
        return
    with temporarily_pop_interpreter_stack():
        write_below(target, torch._C._functorch._unwrap_for_grad(value, transform.level()))


def forward_ad_active() -> bool:
    """Whether a level of forward mode is open."""
    return forward_ad._current_level >= 0


def cached_table(build: Callable[..., Table]) -> Callable[..., Table]:
    """Keep the constant tensors that ``build`` makes of a few hashable arguments.

    Not where they would be more than numbers: traced, mapped, faked or made in inference mode.
    """
    known = functools.lru_cache(maxsize=32)(build)

    @functools.wraps(build)
    def table(*args: object) -> Table:
        watched = (
            torch.compiler.is_compiling()
            or torch._C._are_functorch_transforms_active()
            or is_dispatch_watched()
            or torch.is_inference_mode_enabled()
        )
        return build(*args) if watched else known(*args)

    return table
