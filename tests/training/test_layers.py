"""The table of layers."""

import torch
from torch import nn

import manual_ops
import models
from tests.training.examples import data
from training.layers import Layer, layer_table


def test_parameters_and_output_sizes():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 3)
    )
    assert layer_table(model, data()) == [
        Layer("0", "Conv2d", (3, 4, 4), weights=27, biases=0),
        Layer("1", "BatchNorm2d", (3, 4, 4), weights=3, biases=3),
        Layer("2", "Flatten", (48,), weights=0, biases=0),
        Layer("3", "Linear", (3,), weights=144, biases=3),
    ]
    assert model.training


def test_nested_layers_have_their_full_names_and_holders_are_left_out():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 2), nn.ReLU()))
    assert [layer.name for layer in layer_table(model, data())] == ["0", "1.0", "1.1"]


def test_parameters_beside_layers_count():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 2)
            self.shift = nn.Parameter(torch.zeros(2))

        def forward(self, inputs):
            return self.linear(inputs.flatten(1)) + self.shift

    rows = layer_table(Shifted(), data())
    assert [(row.name, row.parameters) for row in rows] == [("", 2), ("linear", 34)]


def test_the_sum_is_that_of_the_model():
    model = models.build("resnet18", manual_ops.nn, (1, 4, 4), 3)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(layer.parameters for layer in layer_table(model, data())) == total
