"""The switch that sends formulas through the compiler.

Eager code runs a formula as one pass over memory for each operation in it; compiled, most become
one pass. What is compiled is the formula itself, as it is written in the op's file.
"""

import functools
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ._modes import may_overwrite


class fuse:  # noqa: N801, a switch like torch.no_grad
    """Run the elementwise and reduction formulas of backward passes through ``torch.compile``.

    As a function it counts from here on, as a context inside it, for all threads (PyTorch runs
    backward passes in threads of its own). The first call for each formula, and for shapes that
    differ in kind, takes seconds; calls on small tensors take longer than without. It concerns
    plain first-order backward passes alone. Where there is no compiler, one warning says so and
    formulas run as they did.

    Args:
        mode: False turns it off.

    Example:
        >>> manual_ops.fuse()
        >>> with manual_ops.fuse(False):
        ...     loss.backward()
    """

    enabled = False

    def __init__(self, mode: bool = True) -> None:
        self._before = fuse.enabled
        fuse.enabled = mode

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        fuse.enabled = self._before


_has_compiler = True


def fusible(formula: Callable[..., Any], plain: Callable[..., Any] | None = None) -> Any:
    """Return a function that runs ``formula``, compiled where :class:`fuse` says so.

    Also as a decorator.

    Args:
        formula: From tensors, the first of which is a gradient, to tensors; without side effects
            where ``may_overwrite`` is False, as it is while it is compiled.
        plain: The same, faster where it is not compiled; by default ``formula``.
    """
    plain = plain or formula
    compiled: Callable[..., Any] | None = None

    @functools.wraps(formula)
    def evaluate(grad_output: Any, *args: Any) -> Any:
        nonlocal compiled
        fused = fuse.enabled and _has_compiler and isinstance(grad_output, Tensor)
        if not fused or not may_overwrite(grad_output):
            return plain(grad_output, *args)
        try:
            compiled = compiled or torch.compile(_of_its_own(formula, plain))
            # Detached: Dynamo asks tensors with a history for their .grad, which warns.
            given = (grad_output, *args)
            return compiled(*(a.detach() if isinstance(a, Tensor) else a for a in given))
        except RuntimeError as error:
            result = plain(grad_output, *args)  # raises by itself where the formula is at fault
            _give_up(error)
            return result

    return evaluate


def _of_its_own(formula: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``formula`` with a code object that no other has; outside of Dynamo, ``plain``.

    Dynamo keeps its graphs with the code, at most eight of them, and then compiles no more but runs
    the code. That of a wrapper is the code of all formulas that it wraps.
    """

    def either(*args: Any) -> Any:
        return formula(*args) if torch.compiler.is_compiling() else plain(*args)

    name = f"{formula.__module__}.{formula.__name__}"
    code = either.__code__.replace(co_name=name)
    return FunctionType(code, either.__globals__, name, None, either.__closure__)


def _give_up(error: RuntimeError) -> None:
    """Leave all formulas to eager code from here on."""
    global _has_compiler
    _has_compiler = False
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(f"manual_ops.fuse: formulas are not compiled: {reason}", stacklevel=3)
