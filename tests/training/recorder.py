"""A logger that keeps what it is given."""

from training.log import Logger


class Recorder(Logger):
    """Keeps metrics and the names of images and curves, with their steps."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[int, str]] = []
        self.curves: list[tuple[int, str]] = []
        self.closed = False

    def log(self, metrics, step):
        self.metrics.append((step, dict(metrics)))

    def log_image(self, name, image, step):
        self.images.append((step, name))

    def log_precision_recall(self, name, hits, scores, step):
        self.curves.append((step, name))

    def close(self):
        self.closed = True
