"""Refusing what is not a Tensor at all, where an op looks at a tensor before its kernel does."""

from torch import Tensor


def no_tensor(op: str, **arguments: object) -> TypeError:
    """Return the error that names the first of ``arguments`` that is not a Tensor."""
    name, found = next((n, a) for n, a in arguments.items() if not isinstance(a, Tensor))
    return TypeError(f"{op}: expected argument '{name}' to be a Tensor, got {type(found).__name__}")
