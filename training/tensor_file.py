"""Files of tensors and plain values that are whole or absent, and checked when they are read."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from training.atomic import atomic_write


def write(path: Path, content: Any) -> None:
    """Write ``content``, nested containers of tensors and plain values, in PyTorch's format.

    Raises:
        OSError: The file cannot be written; what ``path`` held is still there.
    """
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch's, about what a failed write left behind
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what ``write`` wrote, with its tensors on ``device``.

    Nothing in the file is run: pickled objects of other kinds are refused.

    Raises:
        ValueError: The file is damaged, or holds something else.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch.load does not look at the checksums
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} is refused: it holds more than tensors and plain values, and reading "
                "that could run any code"
            ) from error
        except Exception as error:  # bad bytes make zipfile, zlib, struct, PyTorch raise all kinds
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is damaged: {reason}") from error
