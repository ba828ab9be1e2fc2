"""Locks that end with the process that holds them, however it ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file or folder until it is closed.

    Returns:
        False if another process has it. Where there are no locks, on Windows and on some network
        drives, True.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep the run in ``folder`` to this process within the block.

    Raises:
        ValueError: Another process is at it.
        OSError: The folder cannot be opened.
    """
    with _opened(folder) as descriptor:
        if not try_lock(descriptor):
            raise ValueError(
                f"another process is running in {folder}. Wait for it, or choose another --run-dir"
            )
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let the processes that share ``folder`` into the block one after another.

    Raises:
        OSError: The folder cannot be opened.
    """
    with _opened(folder) as descriptor:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):  # there are no locks on some network drives
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open a folder within the block; on Windows, where that cannot be, do nothing."""
    if sys.platform == "win32":
        yield -1
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_free(folder: Path) -> bool:
    """Return whether no other process runs in ``folder``, which need not exist."""
    try:
        with exclusive(folder):
            return True
    except FileNotFoundError:
        return True
    except ValueError:
        return False
