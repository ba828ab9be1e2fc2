"""The time a run has taken, over all its starts."""

import time


class Stopwatch:
    """Seconds since a run began, and since its last lap.

    After a resume it goes on from the time of the checkpoint, to which is added what the new
    start has taken.
    """

    def __init__(self) -> None:
        self._started = self._began = self._lap = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def lap(self) -> float:
        """Return the seconds since the last call, or since the run began; start a new lap."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    def leave_out_start(self) -> None:
        """Take out what this start of the program has taken: for a run that had been complete."""
        self._began += time.perf_counter() - self._started

    def state_dict(self) -> dict[str, float]:
        """Return the seconds since the beginning and since the last lap."""
        now = time.perf_counter()
        return {"seconds": now - self._began, "lap": now - self._lap}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from what ``state_dict`` returned."""
        self._began -= state["seconds"]
        self._lap = time.perf_counter() - state["lap"]
