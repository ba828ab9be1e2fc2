"""Pictures made of pixels."""

import pytest
import torch
from torch import nn

from tests.training.examples import data
from training import pictures


def test_grid_places_images_row_by_row_on_white():
    images = torch.stack([torch.full((1, 48, 48), value) for value in (0.0, 0.2, 0.4)])
    picture = pictures.grid(images, columns=2)
    assert picture.shape == (1, 2 * 52, 2 * 52)
    assert picture.dtype == torch.uint8
    assert picture[:, 26, 26].tolist() == [0]
    assert picture[:, 26, 78].tolist() == [51]
    assert picture[:, 78, 26].tolist() == [102]
    assert picture[:, 78, 78].tolist() == [255]  # the place that is left over
    assert picture[:, 0, 0].tolist() == [255]


def test_grid_keeps_colours():
    picture = pictures.grid(torch.tensor([1.0, 0.0, 0.2]).view(1, 3, 1, 1), columns=8)
    assert picture.shape == (3, 52, 52)
    assert picture[:, 26, 26].tolist() == [255, 0, 51]


def test_kernels_show_zero_as_grey_and_the_extremes_as_black_and_white():
    model = nn.Sequential(nn.Conv2d(1, 1, 2))
    model[0].weight.data = torch.tensor([[[[2.0, -2.0], [0.0, 1.0]]]])
    picture = pictures.kernels(model, data())
    assert picture.shape == (1, 52, 52)
    assert picture[0, [14, 14, 38, 38], [14, 38, 14, 38]].tolist() == [255, 0, 128, 191]


@pytest.mark.parametrize(
    ("layer", "channels", "tiles"),
    [
        (nn.Conv2d(3, 10, 5), 3, (2, 8)),  # one colour picture per kernel
        (nn.Conv2d(2, 10, 5), 2, (3, 8)),  # one grey picture per channel
        (nn.Linear(16, 5), 1, (1, 5)),  # rows in the shape of an image
        (nn.Linear(48, 100), 3, (8, 8)),  # the first 64
    ],
)
def test_kernels_of_first_layers(layer, channels, tiles):
    picture = pictures.kernels(nn.Sequential(nn.Flatten(), layer), data(channels))
    side = picture.shape[2] // tiles[1]
    assert picture.shape[1:] == (tiles[0] * side, tiles[1] * side)
    assert side >= 52


def test_samples():
    picture = pictures.samples(data(count=40).train.inputs)
    assert picture.shape == (1, 4 * 52, 8 * 52)
