"""Let PyTorch see a hand-written op as the function of torch that it stands for."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting
from torch.overrides import TorchFunctionMode, _get_overloaded_args, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def overridable(
    theirs: Callable[..., Any] | None = None, *, parts: Callable[..., Any] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate an op of the signature of ``theirs``, a function of torch.

    Where torch has none, ``parts`` computes the same by ops for which it has.

    Two protocols of PyTorch know functions by who they are:

    * A tensor of a subclass has a ``__torch_function__`` (quantised weights, say), which is
      called with ``theirs``, or with the ops that ``parts`` is made of. What it leaves to PyTorch
      comes back to the op.
    * ``torch.export`` records ``theirs``: its graphs, which keep no Function in any case, go to
      programs that know torch's functions, and would not know what ours are made of.

    What has a ``__torch_function__`` and is no tensor, as torch.fx's proxies, is called with the
    op itself, so that code that was recorded runs the op. Under a ``TorchFunctionMode`` the op
    runs, and the mode sees the functions that it is made of.
    """

    def decorate(op: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(op)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            overridden = has_torch_function(args) or (
                kwargs and has_torch_function(tuple(kwargs.values()))
            )
            if overridden and not (is_compiling() or torch._C._is_torch_function_mode_enabled()):
                if parts and _subclass_comes_first(args, kwargs):
                    return parts(*args, **kwargs)  # type: ignore[no-any-return]
                return _handed_over(theirs or call, call, args, kwargs)  # type: ignore[no-any-return]
            if theirs and is_exporting():
                return theirs(*args, **kwargs)  # type: ignore[no-any-return]
            return op(*args, **kwargs)

        return call

    return decorate


def _subclass_comes_first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what overrides the op is a tensor, and not, say, a proxy."""
    return isinstance(_get_overloaded_args((*args, *kwargs.values()))[0], Tensor)


def _handed_over(
    theirs: Callable[..., Any],
    ours: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the ``__torch_function__`` of the arguments, as ``handle_torch_function`` does."""
    overloaded = _get_overloaded_args((*args, *kwargs.values()))
    types = tuple(map(type, overloaded))
    with _Back(theirs, ours):
        for arg in overloaded:
            function = theirs if isinstance(arg, Tensor) else ours
            result = arg.__torch_function__(function, types, args, kwargs)
            if result is not NotImplemented:
                return result
    name = f"{theirs.__module__}.{theirs.__name__}"
    raise TypeError(f"no implementation found for '{name}' on types that implement it: {types}")


class _Back(TorchFunctionMode):
    """Calls ``ours`` for ``theirs``."""

    def __init__(self, theirs: Callable[..., Any], ours: Callable[..., Any]) -> None:
        super().__init__()
        self.theirs, self.ours = theirs, ours

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (self.ours if func is self.theirs else func)(*args, **(kwargs or {}))
