"""Checkpoints of a run, from which it continues after whatever ended it."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training import parallel, tensor_file
from training.atomic import remove_unfinished
from training.config import Config, flag

KEPT = 2  # the newest, and the one before it should the newest be damaged

# Settings that may differ on a resume: they say where a run is and how it is computed, not what.
FREE = frozenset(
    {
        "checkpoint_every", "compile", "config", "data_dir", "device", "report", "resume",
        "run_dir", "tensorboard", "threads",
    }
)  # fmt: skip


class Checkpoints:
    """The last checkpoints of a run: files ``checkpoints/step-N.pt`` in its folder.

    A checkpoint appears under its name only once it is whole and on the disk, so that there is a
    good one at any moment.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        """Take the checkpoints of the run in ``run_dir``, whose settings are ``config``."""
        self._config = config
        self._folder = run_dir / "checkpoints"
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the time between two checkpoints has passed."""
        return time.monotonic() - self._saved_at >= self._config.checkpoint_every

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return next(reversed(self._files()), None)

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Write the checkpoint of ``step``; delete those before the last two, or after it.

        Of several processes, the first does.

        Raises:
            OSError: It cannot be written.
        """
        self._saved_at = time.monotonic()
        if not parallel.is_first():
            return
        self._folder.mkdir(exist_ok=True)
        remove_unfinished(self._folder)
        content = {"settings": self._config.plain(), "state": state}
        tensor_file.write(self._folder / f"step-{step}.pt", content)
        files = self._files()
        kept = [path for path in files if _step(path) <= step][-KEPT:]
        for path in files:
            if path not in kept:
                path.unlink()

    def load(self) -> dict[str, Any] | None:
        """Return the state in the newest checkpoint that is whole, or None if there is none yet.

        Damaged ones are passed over with a warning on the error output.

        Raises:
            ValueError: All are damaged, or they are of a run with other settings.
        """
        paths = self._files()
        for path in reversed(paths):
            try:
                settings, state = _read(path)
            except (ValueError, OSError) as error:
                print(f"warning: a checkpoint is passed over: {error}", file=sys.stderr)
                continue
            self._check_fit(path, settings)
            return state
        if paths:
            raise ValueError(
                f"no checkpoint in {self._folder} can be read: delete the folder of the run and "
                "start it again"
            )
        return None

    def clear(self) -> None:
        """Delete all checkpoints."""
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        paths = self._folder.glob("step-*.pt")
        return sorted((p for p in paths if p.stem[5:].isdecimal()), key=_step)

    def _check_fit(self, path: Path, saved: dict[str, Any]) -> None:
        reasons, free = {}, FREE
        if self._config.schedule != "constant":
            reasons["epochs"] = f", over which --schedule {self._config.schedule} is laid out"
        elif self._config.warmup:
            reasons["epochs"] = ", of which --warmup is a share"
        else:
            free |= {"epochs"}
        now = self._config.plain()
        differing = [
            f"{flag(name)} {saved.get(name)} there, {now.get(name)} here{reasons.get(name, '')}"
            for name in sorted(saved.keys() | now.keys())
            if name not in free and saved.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"{path} is of a run with other settings ({'; '.join(differing)}). Resume without "
                "them, or start a new run"
            )


def _step(path: Path) -> int:
    return int(path.stem[5:])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the state in a checkpoint."""
    content = tensor_file.read(path)
    try:
        return dict(content["settings"]), dict(content["state"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no checkpoint of this program") from error
