"""Recommended settings for each data set and model."""

from typing import Any

from training.config import Config, DatasetName, ModelName

DEFAULT_MODEL: dict[DatasetName, ModelName] = {
    "digits": "fashion-cnn",
    "moons": "mlp",
    "mnist": "mnist-cnn",
    "fashion-mnist": "fashion-cnn",
    "cifar10": "cifar-cnn",
    "cifar100": "cifar-cnn",
    "folder": "cifar-cnn",
}

# What holds for a data set with any model,
_DATASETS: dict[DatasetName, dict[str, Any]] = {
    "digits": {"crop_padding": 1, "flip": False, "threads": 1},
    "moons": {"threads": 1},
    "mnist": {"validation": 0.05, "augment": True, "crop_padding": 1, "flip": False},
    "fashion-mnist": {"validation": 0.05, "augment": True, "crop_padding": 1},
    "cifar10": {"validation": 0.05, "augment": True},
    "cifar100": {"validation": 0.05, "augment": True},
    "folder": {"validation": 0.05, "augment": True},
}

# then for a model on any data set,
_MODELS: dict[ModelName, dict[str, Any]] = {
    "mlp": {"hidden": (300,), "augment": False},
    "mnist-cnn": {"lr": 0.01},
    "cifar-cnn": {"epochs": 24, "lr": 0.004},
    "fashion-cnn": {"batch_norm": True, "dropout": 0.1, "epochs": 20, "lr": 0.005},
    "speed-resnet": {
        "epochs": 8,
        "batch_size": 500,
        "optimizer": "muon",
        "lr": 0.24,
        "bias_lr": 0.02,
        "momentum": 0.6,
        "schedule": "linear",
        "label_smoothing": 0.2,
        "augment": True,
        "crop_padding": 2,
        "select": "last",
    },
    "resnet18": {"epochs": 3, "lr": 0.002},
    "vgg": {"batch_norm": True, "epochs": 30, "lr": 0.002, "weight_decay": 0.05},
}

# then for the two together.
_PAIRS: dict[tuple[DatasetName, ModelName], dict[str, Any]] = {
    ("digits", "fashion-cnn"): {
        "epochs": 22,
        "batch_size": 64,
        "augment": True,
        "dropout": 0.3,
        "weight_decay": 0.1,
        "select": "last",  # 144 validation images cannot tell the last epochs apart
    },
    ("moons", "mlp"): {"hidden": (32, 32), "epochs": 30, "batch_size": 32, "lr": 0.01},
    ("mnist", "mlp"): {
        "activation": "sigmoid",
        "augment": True,
        "epochs": 12,
        "lr": 0.005,
        "select": "last",
    },
    ("mnist", "mnist-cnn"): {
        "epochs": 8,
        "batch_size": 64,
        "optimizer": "sgd",
        "nesterov": True,
        "lr": 0.07,
        "weight_decay": 5e-4,
        "validation": 0.02,
        "select": "last",
    },
    ("mnist", "speed-resnet"): {
        "width": 0.25,
        "epochs": 6,
        "label_smoothing": 0.1,
        "validation": 0.02,
    },
    ("fashion-mnist", "speed-resnet"): {
        "width": 0.375,
        "epochs": 12,
        "crop_padding": 0,  # all images are centred
        "cutout": 8,
        "test_flip": True,
    },
    ("cifar10", "speed-resnet"): {"test_flip": True},
    ("cifar100", "speed-resnet"): {"test_flip": True},
    ("cifar10", "mlp"): {
        "hidden": (1000, 500, 200, 100, 100),
        "activation": "leaky_relu",
        "negative_slope": 0.002,
        "batch_norm": True,
        "augment": True,
        "epochs": 24,
        "lr": 0.003,
    },
}


def recipe(dataset: DatasetName, model: ModelName | None = None) -> Config:
    """Return the settings recommended for ``model`` on ``dataset``.

    Args:
        dataset: Name of a data set.
        model: Name of a model; by default the data set's usual one.

    Returns:
        A complete configuration; what the tables leave out keeps ``Config``'s defaults.
    """
    model = model or DEFAULT_MODEL[dataset]
    settings = _DATASETS[dataset] | _MODELS[model] | _PAIRS.get((dataset, model), {})
    return Config(dataset=dataset, model=model, **settings)
