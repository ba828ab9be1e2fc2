"""Where a run's metrics go while it trains: nowhere, the console, TensorBoard, or several."""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from typing_extensions import override

from training.run_folder import EVENTS

# Scalars beside the settings in TensorBoard's HParams tab.
HPARAM_METRICS = (
    "accuracy/test",
    "loss/test",
    "accuracy/validation",
    "loss/validation",
    "speed/images_per_second",
)


class Logger:
    """Takes what a run has to tell, and does nothing with it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take scalar ``metrics`` by name after training step ``step``."""

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        """Take an ``image``, RGB or grey: ``(3 or 1, height, width)`` uint8."""

    def log_precision_recall(self, name: str, hits: Tensor, scores: Tensor, step: int) -> None:
        """Take ``scores`` from 0 to 1 and which of them are ``hits``, bool; both ``(N,)``."""

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of the run by name."""

    def flush(self) -> None:
        """Write out what is pending, so that it outlives the process."""

    def close(self) -> None:
        """Write out what is pending; the logger is not used again."""


class Loggers(Logger):
    """Passes everything on to several loggers."""

    def __init__(self, *loggers: Logger) -> None:
        self._loggers = loggers

    @override
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for logger in self._loggers:
            logger.log(metrics, step)

    @override
    def log_image(self, name: str, image: Tensor, step: int) -> None:
        for logger in self._loggers:
            logger.log_image(name, image, step)

    @override
    def log_precision_recall(self, name: str, hits: Tensor, scores: Tensor, step: int) -> None:
        for logger in self._loggers:
            logger.log_precision_recall(name, hits, scores, step)

    @override
    def log_settings(self, settings: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.log_settings(settings)

    @override
    def flush(self) -> None:
        for logger in self._loggers:
            logger.flush()

    @override
    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # one that fails leaves none of the others open
            for logger in self._loggers:
                stack.callback(logger.close)


class ConsoleLogger(Logger):
    """A line per epoch, and in a terminal a progress bar below the lines."""

    def __init__(self, steps: int, step: int = 0) -> None:
        """Start the bar of a run of ``steps`` training steps, ``step`` of them taken already."""
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    @override
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._bar.update(step - self._bar.n)
        if "schedule/epoch" in metrics:
            self._bar.write(_epoch_line(metrics), file=sys.stdout)
            sys.stdout.flush()  # plain lines reach a pipe or file as they come
        elif "loss/train" in metrics:
            self._bar.set_postfix(loss=f"{metrics['loss/train']:.4f}", refresh=False)

    @override
    def close(self) -> None:
        self._bar.close()


def _epoch_line(metrics: Mapping[str, float]) -> str:
    decay = metrics["loss/weight_decay"]
    return (
        f"epoch {metrics['schedule/epoch']:3.0f}  loss {metrics['loss/train_epoch']:.4f}"
        f"{f' + weight decay {decay:.4f}' if decay else ''}  "
        f"accuracy {metrics['accuracy/train_epoch']:7.2%}  "
        f"validation loss {metrics['loss/validation']:.4f}  "
        f"accuracy {metrics['accuracy/validation']:7.2%}  "
        f"{metrics['speed/images_per_second']:,.0f} images/s"
    )


class TensorBoardLogger(Logger):
    """Writes TensorBoard events, all of a run into one directory."""

    def __init__(self, directory: Path, purge_step: int = 0) -> None:
        """Open an event file in ``directory``.

        Args:
            directory: Folder of the run.
            purge_step: TensorBoard drops what a former run wrote from this step on; by default
                all of it.
        """
        from torch.utils.tensorboard import SummaryWriter  # imports for over a second

        # TensorBoard reads the files in the order of their names, which begin with the second.
        taken = {path.name.split(".")[3] for path in directory.glob(EVENTS)}
        while str(int(time.time())) in taken:
            time.sleep(0.05)
        # max_queue: the metrics of many steps come at once, and training must not wait for them.
        self._writer: Any = SummaryWriter(directory, purge_step=purge_step, max_queue=1000)
        self._excepthook = threading.excepthook
        threading.excepthook = self._pass_over

    def _pass_over(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback of the thread that writes: the next call here raises the same."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._excepthook(failure)

    @override
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event for all of them: a third of the cost of add_scalar for each.
        values = [Summary.Value(tag=name, simple_value=x) for name, x in metrics.items()]
        self._writer.file_writer.add_summary(Summary(value=values), step)

    @override
    def log_image(self, name: str, image: Tensor, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        file = io.BytesIO()
        # add_image() would make grey images RGB, and every byte costs.
        pixels = image.squeeze(0) if image.shape[0] == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(file, format="png")
        channels, height, width = image.shape
        picture = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self._writer.file_writer.add_summary(summary, step)

    @override
    def log_precision_recall(self, name: str, hits: Tensor, scores: Tensor, step: int) -> None:
        self._writer.add_pr_curve(name, hits, scores, step)

    @override
    def log_settings(self, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        known = {
            name: value if type(value) in (int, float) else str(value)
            for name, value in settings.items()
        }
        # add_hparams() would open a second run for these.
        for summary in hparams(known, dict.fromkeys(HPARAM_METRICS, 0.0)):
            self._writer.file_writer.add_summary(summary)

    @override
    def flush(self) -> None:
        self._writer.flush()

    @override
    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._excepthook
