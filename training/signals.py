"""Ctrl-C and SIGTERM as a wish that a run can grant in good order."""

import signal
from types import FrameType
from typing import Any

from typing_extensions import override


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked the program to stop.

    Attributes:
        code: Exit code, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.code = 128 + number


class StopSignals:
    """Within the block, SIGINT and SIGTERM are noted; a second one acts as it does outside.

    Attributes:
        received: Number of the signal that came, 0 if none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()


class StopAtOnce(StopSignals):
    """Within the block, SIGINT and SIGTERM raise ``Stopped``; a second one acts as outside."""

    @override
    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        raise Stopped(number)
