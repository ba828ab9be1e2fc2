"""A small data set, and the results of a model on it."""

import torch
from torch import Tensor, nn

from training import report
from training.curves import Curve
from training.data import Data, Split
from training.evaluation import Evaluation
from training.recipes import recipe
from training.results import Results


def data(channels: int = 1, size: int = 4, count: int = 6) -> Data:
    """Random images of three classes, of which the last has no test examples."""
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    split = Split(images, labels)
    shape = (channels, 1, 1)
    return Data(
        train=split,
        validation=split,
        test=split,
        input_shape=(channels, size, size),
        classes=("cat", "dog", "cow"),
        mean=torch.full(shape, 100.0),
        std=torch.full(shape, 50.0),
    )


def evaluation(logits: Tensor, labels: Tensor) -> Evaluation:
    """Return the evaluation of these logits."""
    loss = nn.functional.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return Evaluation(loss, accuracy, logits, labels)


def curves(layers: int = 3, steps: int = 40) -> dict[str, Curve]:
    """Return curves as a run of two epochs leaves them."""
    every, epochs, sometimes = range(1, steps + 1), (steps // 2, steps), range(20, steps + 1, 20)
    return {
        "loss/train": [(step, 2.0 / step) for step in every],
        "accuracy/train": [(step, 1.0 - 1.0 / step) for step in every],
        "schedule/learning_rate": [(step, 0.1) for step in every],
        "loss/validation": [(step, 3.0 / step) for step in epochs],
        "accuracy/validation": [(step, 1.0 - 2.0 / step) for step in epochs],
        **{
            f"norm/gradient/layer{i}": [(step, (i + 1.0) / step) for step in sometimes]
            for i in range(layers)
        },
    }


def results(
    classes: int = 3, examples: int = 60, channels: int = 1, layers: int = 3, points: bool = False
) -> Results:
    """Return the results of an untrained model on random examples, a few of them predicted."""
    shape = (2,) if points else (channels, 8, 10)
    raw = torch.rand(examples, 2) if points else torch.randint(256, (examples, *shape)).byte()
    names = tuple(f"class {i}" for i in range(classes))
    mean = torch.full((shape[0],) + (1,) * (len(shape) - 1), 100.0)
    labels = torch.arange(examples) % classes
    logits = 2 * torch.randn(examples, classes)
    logits[torch.arange(examples), labels] += 2
    width = 2 if points else channels * 80
    data_set = Data(
        input_shape=shape, classes=names, mean=mean, std=mean / 2,
        train=Split(raw, labels), validation=Split(raw, labels), test=Split(raw, labels),
    )  # fmt: skip
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, classes))
    tested = evaluation(logits, labels)
    config = recipe("moons" if points else "digits")
    history = [{"accuracy/validation": 0.5, "speed/images_per_second": 10.0}] * 2
    return Results(
        config=config,
        inputs=data_set,
        model=model,
        raw=raw,
        evaluation=tested,
        evaluated="test set of digits",
        curves=curves(layers),
        metrics=report.metrics(config, data_set, model, history, 2, tested, 3725.0),
    )
