"""Files that are either whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from training.lock import try_lock

_SUFFIX = ".unfinished"


def remove_unfinished(directory: Path, name: str = "") -> None:
    """Delete what ``atomic_write`` left in ``directory`` if its process was killed in it.

    Args:
        directory: Where to look.
        name: Start of the names of the files meant; others are left alone.
    """
    for path in directory.glob(f".{name}*{_SUFFIX}"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if try_lock(file.fileno()):  # else its process is still writing
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
    temporary = None
    try:
        remove_unfinished(path.parent, f"{path.name}.")
        descriptor, temporary = tempfile.mkstemp(_SUFFIX, f".{path.name}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            try_lock(descriptor)
            yield file
            file.flush()
            os.fsync(descriptor)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # not the temporary one
        raise
