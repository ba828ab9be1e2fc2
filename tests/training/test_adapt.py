"""Examples of one data set in the form of another."""

import pytest
import torch

from training.adapt import adapt
from training.data import Split
from training.inputs import Inputs


def inputs(*shape: int, classes: tuple[str, ...] = ("cat", "dog")) -> Inputs:
    return Inputs(shape, classes, torch.zeros(shape[0]), torch.ones(shape[0]))


def split(*shape: int, labels: tuple[int, ...] = (0, 1, 0)) -> Split:
    images = torch.randint(256, (len(labels), *shape), dtype=torch.uint8)
    return Split(images, torch.tensor(labels))


def test_the_same_form_stays_as_it_is():
    given = split(1, 4, 5)
    adapted = adapt(given, inputs(1, 4, 5), inputs(1, 4, 5))
    assert torch.equal(adapted.inputs, given.inputs)
    assert torch.equal(adapted.labels, given.labels)


def test_grey_for_a_model_of_colours():
    given = split(1, 4, 5)
    adapted = adapt(given, inputs(1, 4, 5), inputs(3, 4, 5))
    for channel in range(3):
        assert torch.equal(adapted.inputs[:, channel], given.inputs[:, 0])


def test_colours_for_a_model_of_grey():
    given = split(3, 4, 5)
    given.inputs[0, :, 0, 0] = torch.tensor([255, 0, 0])
    given.inputs[0, :, 0, 1] = torch.tensor([0, 255, 0])
    given.inputs[0, :, 0, 2] = torch.tensor([0, 0, 255])
    given.inputs[0, :, 0, 3] = 200
    adapted = adapt(given, inputs(3, 4, 5), inputs(1, 4, 5))
    assert adapted.inputs.shape == (3, 1, 4, 5)
    assert adapted.inputs.dtype == torch.uint8
    assert adapted.inputs[0, 0, 0, :4].tolist() == [76, 150, 29, 200]


def test_classes_are_found_by_name():
    found, wanted = inputs(1, 2, 2, classes=("b", "a")), inputs(1, 2, 2, classes=("a", "b", "c"))
    assert adapt(split(1, 2, 2, labels=(0, 1, 1)), found, wanted).labels.tolist() == [1, 0, 0]


def test_an_unknown_class_matters_only_if_it_has_examples():
    found, wanted = inputs(1, 2, 2, classes=("a", "zebra")), inputs(1, 2, 2, classes=("a", "b"))
    assert adapt(split(1, 2, 2, labels=(0, 0)), found, wanted).labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"does not know the classes zebra; it knows a, b"):
        adapt(split(1, 2, 2, labels=(0, 1)), found, wanted)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\), this data set has \(1, 5, 4\)"):
        adapt(split(1, 5, 4), inputs(1, 5, 4), inputs(1, 4, 4))
