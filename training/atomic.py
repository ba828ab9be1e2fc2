"""Files that are either whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_SUFFIX = ".unfinished"


def remove_unfinished(directory: Path) -> None:
    """Delete what ``atomic_write`` left in ``directory`` if the process was killed in it."""
    for path in directory.glob(f".*{_SUFFIX}"):
        path.unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of ``path`` only once it is completely written.

    A crash, a full disk or an exception in the block leaves whatever ``path`` held before.

    Args:
        path: File to write; its directory must exist.

    Yields:
        The file to write to.

    Raises:
        OSError: The directory cannot be written to, or the disk is full.
    """
    descriptor, temporary = tempfile.mkstemp(_SUFFIX, f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
