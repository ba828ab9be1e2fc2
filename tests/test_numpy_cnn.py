"""The NumPy network of benchmarks/numpy_cnn.py computes what our mnist-cnn does."""

import numpy as np
import pytest
import torch

import manual_ops.nn
from benchmarks.numpy_cnn import CASE, WAYS, Network
from models import build

BATCH = 6


@pytest.fixture(params=WAYS)
def sides(request):
    model = build(CASE.model, manual_ops.nn, CASE.input_shape, 10).double()
    weights = [parameter.detach().numpy().copy() for parameter in model.parameters()]
    images = torch.randn(BATCH, *CASE.input_shape, dtype=torch.float64, requires_grad=True)
    return model, Network(weights, request.param), images, torch.randint(10, (BATCH,))


def loss_of(model, images, labels):
    return manual_ops.nn.CrossEntropyLoss()(model(images), labels)


def assert_equal(actual, expected):
    for array, tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(np.ascontiguousarray(array)), tensor)


def test_loss_and_gradients(sides):
    model, network, images, labels = sides
    loss = loss_of(model, images, labels)
    loss.backward()
    numpy_loss, *gradients = network.gradients(images.detach().numpy(), labels.numpy())
    assert numpy_loss == pytest.approx(loss.item(), rel=1e-10)
    assert_equal(gradients[:1], [images.grad])
    assert_equal(gradients[1], [parameter.grad for parameter in model.parameters()])


def test_steps_with_momentum(sides):
    model, network, images, labels = sides
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):  # the first has no momentum yet
        optimizer.zero_grad()
        loss_of(model, images, labels).backward()
        optimizer.step()
        network.step(images.detach().numpy(), labels.numpy(), rate=0.1, momentum=0.9)
    assert_equal(network.parameters, [parameter.detach() for parameter in model.parameters()])
