"""The settings of a run: the one source of command-line flags and of the YAML file of a run."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from training.atomic import atomic_write

DatasetName = Literal["digits", "moons", "mnist", "fashion-mnist", "cifar10", "cifar100", "folder"]
ModelName = Literal[
    "mlp", "mnist-cnn", "cifar-cnn", "fashion-cnn", "vgg", "resnet18", "speed-resnet"
]
OptimizerName = Literal["sgd", "sgd-moving-average", "adam", "adamw", "muon"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Train a model whose backward passes are written by hand.

    The defaults shown are those of the chosen --dataset and --model; any flag overrides them.
    """

    dataset: DatasetName = "digits"
    """Data set. digits and moons come with scikit-learn, the others are read from --data-dir.
    All but folder are downloaded into it if they are not there."""

    data_dir: Path = Path("data")
    """Directory of the data sets; for folder, the one that holds train/CLASS/* and test/CLASS/*."""

    image_size: int | None = None
    """folder: resize every image to this height and width; needed only if sizes differ."""

    limit_train: int | None = None
    """Train on this many images only."""

    validation: float = 0.1
    """Fraction of the training images held out to choose the best epoch."""

    augment: bool = False
    """Crop training images at random, see --crop-padding, and mirror them, see --flip."""

    crop_padding: int = 4
    """Pixels of black padding on each side before the random crop of --augment."""

    flip: bool = True
    """Mirror half of the images under --augment. Wrong for digits and letters."""

    cutout: int = 0
    """Black out a square of this many pixels each way in every training image."""

    mixup: float = 0.0
    """Mix each training image and its label with another's, in proportions from Beta(mixup, mixup);
    0.2 is mild, 1 strong. The training accuracy then counts the label of the larger share."""

    test_flip: bool = False
    """Outside of training, average the logits of each image and its mirror image."""

    model: ModelName = "mnist-cnn"
    """Architecture; it adapts to the size, channels and classes of the data set."""

    hidden: tuple[int, ...] = ()
    """mlp: sizes of the hidden layers."""

    activation: Literal["sigmoid", "tanh", "relu", "leaky_relu"] = "relu"
    """mlp: activation after each hidden layer."""

    negative_slope: float = 0.01
    """mlp: slope of leaky_relu below zero."""

    batch_norm: bool = False
    """mlp, fashion-cnn and vgg: batch normalisation before each activation."""

    dropout: float = 0.0
    """mlp and fashion-cnn: probability of zeroing an activation."""

    width: float = 1.0
    """speed-resnet: factor of the number of channels."""

    backend: Literal["manual", "torch"] = "manual"
    """Layers: manual_ops.nn, or torch.nn to compare. Both start from the same weights."""

    epochs: int = 10
    """Passes over the training images."""

    batch_size: int = 128
    """Images in a step, in all processes together."""

    optimizer: OptimizerName = "adamw"
    """sgd has momentum m <- mu m + g; sgd-moving-average has m <- mu m + (1 - mu) g; muon
    takes orthogonal steps of matrices and kernels, fixing their lengths, and adam's of the rest."""

    lr: float = 0.001
    """Learning rate; for all but a constant schedule, the highest."""

    bias_lr: float | None = None
    """Learning rate of biases and of batch norm; by default --lr."""

    schedule: Literal["constant", "linear", "cosine", "one-cycle"] = "one-cycle"
    """How the learning rate changes over the run."""

    warmup: float = 0.0
    """Share of the run over which the learning rate rises from zero, before the schedule begins.
    one-cycle has a warm-up of its own."""

    clip_norm: float | None = None
    """Scale a step's gradients down so that, taken together, their norm is at most this."""

    momentum: float = 0.9
    """Momentum mu of sgd, sgd-moving-average and muon; beta1 of adam and adamw."""

    nesterov: bool = False
    """sgd: Nesterov's momentum."""

    amsgrad: bool = False
    """adam and adamw: the AMSGrad variant."""

    weight_decay: float = 0.0
    """Factor of the penalty on weights, lambda/2 |theta|^2; biases and batch norm are left free."""

    label_smoothing: float = 0.0
    """Probability taken from the true class and spread over all of them."""

    ema: float = 0.0
    """Validate, test and keep an exponential moving average of the weights, with this decay for
    each step, such as 0.999; 0 keeps the weights themselves."""

    patience: int | None = None
    """Stop after so many epochs without a better validation accuracy; --select says what
    weights are kept."""

    select: Literal["best", "last"] = "best"
    """Weights to test and keep: of the epoch with the best validation accuracy, or the last."""

    sync_batch_norm: bool = False
    """Several processes: batch norm over the whole batch, not over each process's share of it."""

    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1, ... Under torchrun, cuda is one for
    each process."""

    threads: int | None = None
    """CPU threads; by default PyTorch's choice. Small models are fastest with one."""

    seed: int = 0
    """Seed of the initial weights, the order of the images, augmentation and dropout."""

    compile: bool = False
    """Run the forward and backward pass through torch.compile."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """tf32: products of float32 are rounded to 10 bits, on CUDA. bfloat16: training under autocast,
    fast on CUDA and on CPUs that have it; weights stay float32."""

    run_dir: Path | None = None
    """Folder for settings, weights, metrics and events; by default runs/DATASET-MODEL-TIME."""

    tensorboard: bool = True
    """Write TensorBoard events."""

    report: bool = True
    """Write report.html and its figures at the end; evaluate.py writes them later."""

    checkpoint_every: float = 120.0
    """Seconds between checkpoints; 0 writes one after every step."""

    resume: Path | None = None
    """Continue the run in this folder from its last checkpoint, with its settings."""

    config: Path | None = None
    """Start from the config.yaml of a former run; flags given beside it override it."""

    def __post_init__(self) -> None:
        for names, fits, expected in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{flag(name)} must be finite, got {value}")
                if value is not None and not fits(value):
                    raise ValueError(f"{flag(name)} must {expected}, got {value}")
        if any(size < 1 for size in self.hidden):
            raise ValueError(f"--hidden needs sizes of at least 1, got {list(self.hidden)}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("--nesterov needs --optimizer sgd and a --momentum above 0")
        if self.amsgrad and self.optimizer not in ("adam", "adamw"):
            raise ValueError("--amsgrad needs --optimizer adam or adamw")
        if self.warmup and self.schedule == "one-cycle":
            raise ValueError("--warmup needs another --schedule: one-cycle has one of its own")
        if self.optimizer == "muon" and self.weight_decay:
            raise ValueError("--optimizer muon fixes the lengths of weights; set no --weight-decay")
        if self.image_size is not None and self.dataset != "folder":
            raise ValueError("--image-size needs --dataset folder; other data sets have one size")
        if self.resume is not None and (self.config or self.run_dir) is not None:
            raise ValueError("--resume has settings and folder already: no --config or --run-dir")

    @property
    def data_name(self) -> str:
        """What to call the data set: for folder, with the name of the directory."""
        if self.dataset == "folder":
            return f"folder {self.data_dir.resolve().name}"
        return self.dataset

    def plain(self) -> dict[str, Any]:
        """Return every setting by name, as YAML's own types."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def save(self, path: Path) -> None:
        """Write every setting to the YAML file ``path``."""
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(self.plain(), sort_keys=False).encode())


# Settings, what their values must fulfil unless they are None, and how to say so.
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("epochs", "batch_size", "limit_train", "image_size", "threads", "patience"),
        lambda value: value >= 1,
        "be at least 1",
    ),
    (("lr", "bias_lr", "clip_norm", "width"), lambda value: value > 0, "be a positive number"),
    (("validation",), lambda value: 0 < value < 1, "lie between 0 and 1"),
    (
        ("momentum", "label_smoothing", "dropout", "warmup", "ema"),
        lambda value: 0 <= value < 1,
        "lie in [0, 1)",
    ),
    (
        (
            "weight_decay",
            "crop_padding",
            "cutout",
            "mixup",
            "negative_slope",
            "checkpoint_every",
        ),
        lambda value: value >= 0,
        "not be negative",
    ),
    (("seed",), lambda value: 0 <= value < 2**63, "lie in [0, 2**63)"),
)


def flag(name: str) -> str:
    """Return the command-line flag of the setting ``name``."""
    return "--" + name.replace("_", "-")


def words(name: str, value: Any) -> list[str]:
    """Return the command-line words that give the setting ``name`` a value, or a list of them."""
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    values = value if isinstance(value, list) else [value]
    return [flag(name), *map(str, values)]


def _plain(value: Any) -> Any:
    """Return ``value`` as YAML's own types."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
