"""What a command line names: an op, and the inputs to check it on."""

import ast
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn


class TargetError(ValueError):
    """A command line that cannot be followed; the message says what to do."""


@dataclass(frozen=True)
class TensorInput:
    """One tensor of a command line.

    Attributes:
        name: For a keyword input; empty for a positional one.
        shape: Its shape.
        kind: What it holds: numbers to differentiate by, or none such.
        below: For integers, what they are less than.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["numbers", "constants", "integers", "booleans"] = "numbers"
    below: int = 0

    @classmethod
    def parse(
        cls, text: str, kind: Literal["numbers", "constants", "booleans"] = "numbers"
    ) -> "TensorInput":
        """Read ``3,4`` or ``weight=3,4``; nothing, or ``()``, is the shape of a scalar.

        Raises:
            ValueError: It is not of this form.
        """
        name, _, sizes = text.rpartition("=")
        shape = tuple(int(size) for size in sizes.strip("()").split(",") if size.strip())
        if min(shape, default=0) < 0 or (name and not name.isidentifier()):
            raise ValueError(text)
        return cls(name, shape, kind)

    @classmethod
    def parse_integers(cls, text: str) -> "TensorInput":
        """Read ``5:10`` or ``target=5:10``: shape, and what the integers are less than.

        Raises:
            ValueError: It is not of this form.
        """
        shape, colon, below = text.rpartition(":")
        tensor = cls.parse(shape)
        if not colon or int(below) < 1:
            raise ValueError(text)
        return cls(tensor.name, tensor.shape, "integers", int(below))

    def draw(
        self,
        dtype: torch.dtype,
        device: torch.device | str,
        between: tuple[float, float] | None,
    ) -> Tensor:
        """Draw the tensor: integers, booleans, normal numbers, or uniform ones in a range."""
        if self.kind == "integers":
            return torch.randint(self.below, self.shape).to(device)
        if self.kind == "booleans":
            return (torch.rand(self.shape) < 0.5).to(device)
        # Rounded from float64, so that every dtype gets the same numbers.
        wide = torch.complex128 if dtype.is_complex else torch.float64
        if between is None:
            return torch.randn(self.shape, dtype=wide).to(device, dtype)
        low, high = between
        return (low + (high - low) * torch.rand(self.shape, dtype=wide)).to(device, dtype)


def parse_value(text: str) -> Any:
    """Read a Python literal, or ``torch.float32`` and the like; anything else is a string."""
    if text.startswith("torch."):
        try:
            return pkgutil.resolve_name(text)
        except (AttributeError, ImportError) as error:
            raise ValueError(text) from error
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def find(target: str) -> Any:
    """Import what ``package.module.name`` or ``path/to/file.py:name`` names.

    Raises:
        TargetError: There is no such file, module or name, or its import fails.
    """
    path, colon, name = target.rpartition(":")
    if path.endswith(".py") or target.endswith(".py"):
        owner = _import_file(Path(path if colon else target))
        if not colon or not hasattr(owner, name):
            raise TargetError(
                f"expected FILE.py:NAME, and in {owner.__file__} {_defined_in(owner)}"
            )
        return getattr(owner, name)
    try:
        return pkgutil.resolve_name(target)
    except AttributeError as error:
        close = get_close_matches(error.name or "", dir(error.obj), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see dir() of it"
        raise TargetError(f"no {target}: {error}; {hint}") from error
    except Exception as error:  # whatever the import of the user's code raises
        raise TargetError(
            f"cannot import {target} ({type(error).__name__}: {error}); expected "
            "package.module.name or path/to/file.py:name"
        ) from error


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise TargetError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent.resolve()))  # as `python path` does
    ours, sys.argv = sys.argv, [str(path)]
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if last.filename.startswith("<") else f" ({last.filename}:{last.lineno})"
        hint = "; name it as package.module.name" if "known parent package" in str(error) else ""
        raise TargetError(
            f"{path} fails to import: {type(error).__name__}: {error}{place}{hint}"
        ) from error
    finally:
        sys.argv = ours
    return module


def _defined_in(module: Any) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    return f"NAME is one of {', '.join(names)}" if names else "nothing can be called"


def build(
    module: type[nn.Module],
    inputs: Sequence[TensorInput],
    args: Sequence[Any],
    keywords: Mapping[str, Any],
) -> nn.Module:
    """Construct a module; sizes that are not given are read off the inputs.

    Constant parameters are drawn anew: a gradient that forgets a factor of one is not seen.

    Raises:
        TargetError: An argument is missing that the inputs do not tell, or construction fails.
    """
    try:
        bound = inspect.signature(module).bind_partial(*args, **keywords)
        keywords = dict(keywords)
        for name, parameter in inspect.signature(module).parameters.items():
            required = parameter.default is parameter.empty
            variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if required and not variable and name not in bound.arguments:
                keywords[name] = _size(name, inputs)
        built = module(*args, **keywords)
    except TargetError as error:
        raise TargetError(f"{module.__name__} {error}") from None
    except Exception as error:  # whatever the constructor raises
        given = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in keywords.items())])
        raise TargetError(
            f"{module.__name__}({given}) raises {type(error).__name__}: {error}; give its "
            "arguments with --args and --kwargs"
        ) from error
    with torch.no_grad():
        for weight in built.parameters():
            if weight.numel() and (weight == weight.flatten()[0]).all():
                weight.add_(torch.randn_like(weight), alpha=0.5)
    return built


def _size(name: str, inputs: Sequence[TensorInput]) -> int:
    """The size that a constructor calls ``name``, for the first input."""
    shape = inputs[0].shape or (1,)
    if name in ("num_features", "num_channels", "in_channels", "out_channels"):
        return shape[1] if len(shape) > 1 else shape[0]
    if name in ("in_features", "out_features", "embed_dim", "normalized_shape"):
        return shape[-1]
    if name in ("input_size", "hidden_size", "d_model"):
        return shape[-1]
    if name == "kernel_size":
        return min(3, *shape[2:])
    if name in ("num_heads", "nhead", "num_groups"):
        return 1
    if name == "num_embeddings" and inputs[0].kind == "integers":
        return inputs[0].below
    if name == "embedding_dim":
        return 4
    raise TargetError(f"needs {name}: give --kwargs {name}=VALUE, or all in order with --args")
