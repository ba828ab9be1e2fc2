"""What TensorBoard's events, and the curves in a file, cost in CPU time beside the training itself.

python -m benchmarks.tensorboard                                     # the digits
python -m benchmarks.tensorboard --dataset mnist --model mlp --data-dir D

Trains with the flags of train.py on one thread, keeps all that it logs, and writes that again and
again: the CPU time of all threads counts, that of the one which writes the events as well.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from training.checkpoint import Checkpoints
from training.cli import parse_args
from training.clock import Stopwatch
from training.curves import CurveLogger
from training.data import load
from training.log import Logger, TensorBoardLogger
from training.loop import train
from training.setup import LAYERS, build_model, pick_device
from training.state import initial_state

REPEATS = 5


class Recorder(Logger):
    """Keeps every call, to make it again on another logger."""

    def __init__(self) -> None:
        self._calls: list[Callable[[Logger], None]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep metrics."""
        kept = dict(metrics)
        self._calls.append(lambda logger: logger.log(kept, step))

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        """Keep an image."""
        self._calls.append(lambda logger: logger.log_image(name, image, step))

    def replay(self, logger: Logger) -> None:
        """Make the calls again, and close the logger."""
        for call in self._calls:
            call(logger)
        logger.close()


def cpu_seconds(action: Callable[[], Any]) -> float:
    """Return the CPU time that all threads together take for ``action``."""
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    """Print the cost of a step, and the share that each logger adds."""
    config = parse_args(["--threads", "1", *sys.argv[1:]])
    layers = LAYERS[config.backend]
    data = load(config, pick_device(config))
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_model(config, data, layers)
        state = initial_state(config, data, model, folder / "weights.pt", Stopwatch())
        checkpoints = Checkpoints(config, folder)
        training = cpu_seconds(lambda: train(config, data, layers, state, recorder, checkpoints))
        steps = state.progress.step
        print(f"{'training':<18}{1e6 * training / steps:8.1f} us a step, {steps} steps")
        for logger in (TensorBoardLogger, CurveLogger):
            logger(folder).close()  # imports
            seconds = min(
                cpu_seconds(lambda: recorder.replay(logger(folder)))  # noqa: B023
                for _ in range(REPEATS)
            )
            print(
                f"{logger.__name__:<18}{1e6 * seconds / steps:8.1f} us a step, "
                f"{seconds / training:.2%}"
            )


if __name__ == "__main__":
    main()
