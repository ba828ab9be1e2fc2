"""Splits, normalisation and batches."""

from itertools import islice

import pytest
import torch

from tests.training.files import write_mnist
from training.config import Config
from training.data import Data, TrainingBatches, load, steps_per_epoch
from training.recipes import recipe

CPU = torch.device("cpu")


def keys(inputs: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in inputs}


def batches(config: Config, data: Data) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of the first epoch."""
    return list(islice(TrainingBatches(config, data), steps_per_epoch(config, data)))


def test_validation_is_held_out_of_training_and_test():
    config = recipe("digits")
    data = load(config, CPU)
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    assert not keys(data.train.inputs) & keys(data.validation.inputs)
    assert not keys(data.test.inputs) & keys(data.validation.inputs)
    assert not keys(data.test.inputs) & keys(data.train.inputs)


def test_the_split_does_not_depend_on_the_seed():
    first, second = (load(Config(seed=seed), CPU) for seed in (0, 1))
    assert torch.equal(first.validation.inputs, second.validation.inputs)


def test_images_stay_uint8(tmp_path):
    write_mnist(tmp_path)
    data = load(Config(dataset="mnist", data_dir=tmp_path), CPU)
    assert data.train.inputs.dtype == torch.uint8
    assert data.input_shape == (1, 28, 28)
    assert data.has_images
    assert not load(Config(dataset="moons"), CPU).has_images


@pytest.mark.parametrize("dataset", ["digits", "moons"])
def test_normalised_training_inputs_have_mean_0_and_deviation_1(dataset):
    data = load(Config(dataset=dataset), CPU)
    normalised = data.normalise(data.train.inputs).transpose(0, 1).flatten(1)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean(1), torch.zeros(len(normalised)), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        normalised.std(1, correction=0), torch.ones(len(normalised)), atol=1e-4, rtol=0
    )


def test_limit_train_limits_training_alone():
    data = load(Config(limit_train=10), CPU)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 144, 359)


def test_batches_pass_once_over_the_training_set():
    config = Config(batch_size=100)
    data = load(config, CPU)
    passed = batches(config, data)
    assert len(passed) == steps_per_epoch(config, data) == 12
    assert {len(labels) for _, labels in passed} == {100}
    seen = torch.cat([inputs for inputs, _ in passed])
    assert len(keys(seen)) == 1200
    assert keys(seen) <= keys(data.train.inputs)


def test_labels_stay_with_their_inputs():
    config = Config(batch_size=64)
    data = load(config, CPU)
    label_of = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(data.train.inputs, data.train.labels, strict=True)
    }
    for inputs, labels in batches(config, data):
        assert [label_of[image.numpy().tobytes()] for image in inputs] == labels.tolist()


def test_fewer_examples_than_a_batch_make_one_batch():
    config = Config(batch_size=64, limit_train=5)
    data = load(config, CPU)
    assert [len(labels) for _, labels in batches(config, data)] == [5]


@pytest.mark.parametrize("augment", [False, True])
def test_the_seed_decides_the_batches(augment):
    data = load(Config(), CPU)
    first, second, other = (
        batches(Config(augment=augment, crop_padding=1, seed=seed), data)[0][0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_augment_changes_training_images():
    data = load(Config(), CPU)
    settings = {"batch_size": 200, "crop_padding": 2}
    plain = torch.cat([x for x, _ in batches(Config(**settings), data)])
    augmented = torch.cat([x for x, _ in batches(Config(augment=True, **settings), data)])
    assert keys(plain) <= keys(data.train.inputs)
    assert len(keys(augmented) - keys(data.train.inputs)) > 800


def test_cutout_and_mixup_change_training_images():
    data = load(Config(), CPU)
    data.train.inputs[data.train.inputs == 0] = 1
    inputs, _ = next(TrainingBatches(Config(cutout=2), data))
    black = (inputs == 0).flatten(1).sum(1)
    assert black.min() >= 1
    assert black.max() == 4
    inputs, labels = next(TrainingBatches(Config(mixup=1.0, batch_size=200), data))
    assert inputs.is_floating_point()
    assert labels.shape == (200, 10)
    assert ((labels > 0).sum(1) == 2).float().mean() > 0.7


@pytest.mark.parametrize("setting", [{"augment": True}, {"cutout": 2}, {"test_flip": True}])
def test_points_cannot_be_changed_as_images(setting):
    name = "--" + next(iter(setting)).replace("_", "-")
    with pytest.raises(ValueError, match=f"{name} needs images, which moons has not"):
        load(Config(dataset="moons", model="mlp", **setting), CPU)


def test_every_epoch_has_an_order_of_its_own():
    config = Config(batch_size=400)
    data = load(config, CPU)
    endless = TrainingBatches(config, data)
    first, second = (torch.cat([next(endless)[0] for _ in range(3)]) for _ in range(2))
    assert len(keys(first)) == len(keys(second)) == 1200
    assert not torch.equal(first, second)


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 7])
def test_batches_continue_from_their_state(taken):
    """Anywhere in an epoch, at its beginning and its end."""
    config = Config(batch_size=400, augment=True, crop_padding=1)
    data = load(config, CPU)
    batches, again = TrainingBatches(config, data), TrainingBatches(config, data)
    for _ in range(taken):
        next(batches)
    again.load_state_dict(batches.state_dict())
    for _ in range(4):
        for expected, found in zip(next(batches), next(again), strict=True):
            assert torch.equal(expected, found)


def test_batches_of_other_data_do_not_continue():
    config = Config(limit_train=100)
    state = TrainingBatches(config, load(config, CPU)).state_dict()
    batches = TrainingBatches(config, load(Config(limit_train=99), CPU))
    with pytest.raises(ValueError, match="another examples: 100 there, 99 here"):
        batches.load_state_dict(state)


def test_points_cannot_be_augmented():
    with pytest.raises(ValueError, match="--augment needs images, which moons has not"):
        load(Config(dataset="moons", augment=True), CPU)


def test_validation_may_not_take_everything(tmp_path):
    write_mnist(tmp_path, train=1)
    with pytest.raises(ValueError, match="none are left to train on"):
        load(Config(dataset="mnist", data_dir=tmp_path), CPU)
