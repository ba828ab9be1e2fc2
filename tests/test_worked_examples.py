"""Two small networks worked through by hand, to 1e-12.

Every expected number follows from the chain rule written above it, by ``math.exp`` alone: neither
torch nor the library takes part in deriving it.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manual_ops import functional as F
from manual_ops import nn


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def assert_exact(found: Tensor, expected: list | float) -> None:
    expected_tensor = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected_tensor, rtol=0, atol=1e-12)


def fused(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def separate(logits: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(F.log(F.softmax(logits, 1)), target)


def log_softmax(logits: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(logits, 1), target)


# x = [1, -1] -> a = x W + b -> h = sigmoid(a) -> z = h V + c -> p = softmax(z) -> L = -log p[0]
#
# Forward:  a = [1 + 1] * 3 = [2, 2, 2]
#           h = [s, s, s]           with s = 1 / (1 + exp(-2)) = 0.8807970779778823
#           z = [s - s - s] * 2 = [-s, -s]
#           p = [1/2, 1/2]          equal logits
#           L = log 2 = 0.6931471805599453
#
# Backward: dL/dz = p - [1, 0] = [-1/2, 1/2]                        (softmax with cross-entropy)
#           dL/dc = dL/dz
#           dL/dV[i][j] = h[i] dL/dz[j] = [-s/2, s/2] in each of the three rows
#           dL/dh[i] = sum_j V[i][j] dL/dz[j] = V[i][0] (-1/2 + 1/2) = 0, as V's columns are equal
#           dL/da = dL/dh s (1 - s) = 0, so dL/dW = x^T dL/da = 0 and dL/db = 0
W = [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
V = [[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]]
S = 1 / (1 + math.exp(-2))


@pytest.mark.parametrize("loss_of", [fused, separate, log_softmax])
def test_sigmoid_softmax_cross_entropy(loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert math.isclose(S, 0.8807970779778823, abs_tol=1e-15)
    x, target = tensor([[1.0, -1.0]]), torch.tensor([0])
    w, b, v, c = tensor(W), tensor([0.0] * 3), tensor(V), tensor([0.0] * 2)
    logits = F.linear(F.sigmoid(F.linear(x, w.mT, b)), v.mT, c)
    loss = loss_of(logits, target)
    assert_exact(logits.detach(), [[-S, -S]])
    assert_exact(loss.detach(), 0.6931471805599453)
    loss.backward()
    assert_exact(w.grad, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert_exact(b.grad, [0.0, 0.0, 0.0])
    assert_exact(v.grad, [[-S / 2, S / 2]] * 3)
    assert_exact(c.grad, [-0.5, 0.5])


def test_sigmoid_softmax_cross_entropy_by_modules() -> None:
    """The same numbers; ``Linear`` holds W and V transposed."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(W).mT)
        model[2].weight.copy_(torch.tensor(V).mT)
        model[0].bias.zero_()
        model[2].bias.zero_()
    loss = nn.CrossEntropyLoss()(model(tensor([[1.0, -1.0]])), torch.tensor([0]))
    loss.backward()
    assert_exact(model[0].weight.grad, [[0.0, 0.0]] * 3)
    assert_exact(model[0].bias.grad, [0.0] * 3)
    assert_exact(model[2].weight.grad, [[-S / 2] * 3, [S / 2] * 3])
    assert_exact(model[2].bias.grad, [-0.5, 0.5])


# The same network with V = [[1, 0], [-1, 2], [-1, 1]], so that W and b get a gradient, target 1.
#
# Forward:  z = [s - s - s, 0 + 2 s + s] = [-s, 3 s]
#           p[0] = 1 / (1 + exp(4 s)) = q,  p[1] = 1 - q
# Backward: dL/dz = p - [0, 1] = [q, -q] = dL/dc
#           dL/dV[i] = s [q, -q]
#           dL/dh = [1 - 0, -1 - 2, -1 - 1] q = [q, -3 q, -2 q]
#           dL/da = r [q, -3 q, -2 q]     with r = s (1 - s), the slope of the sigmoid at 2
#           dL/db = dL/da,  dL/dW = x^T dL/da = [dL/da, -dL/da]
Q = 1 / (1 + math.exp(4 * S))
R = math.exp(-2) / (1 + math.exp(-2)) ** 2


def test_gradient_reaches_the_first_layer() -> None:
    x, target = tensor([[1.0, -1.0]]), torch.tensor([1])
    w, b, c = tensor(W), tensor([0.0] * 3), tensor([0.0] * 2)
    v = tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, 1.0]])
    F.cross_entropy(F.linear(F.sigmoid(F.linear(x, w.mT, b)), v.mT, c), target).backward()
    assert_exact(w.grad, [[R * Q, -3 * R * Q, -2 * R * Q], [-R * Q, 3 * R * Q, 2 * R * Q]])
    assert_exact(b.grad, [R * Q, -3 * R * Q, -2 * R * Q])
    assert_exact(v.grad, [[S * Q, -S * Q]] * 3)
    assert_exact(c.grad, [Q, -Q])
    # dL/dx[k] = sum_j W[k][j] dL/da[j] = +-r q (1 - 3 - 2)
    assert_exact(x.grad, [[-4 * R * Q, 4 * R * Q]])


# x = [1, 2] -> a = x W1 -> h = tanh(a) -> z = h W2 -> y = sigmoid(z) -> L = -log y (target 1)
#
# Forward:  W1 = [[0.5, -0.5], [0.25, 0.5]], W2 = [[1], [-2]]
#           a = [0.5 + 0.5, -0.5 + 1] = [1, 0.5]
#           h = [t, u] with t = tanh 1 and u = tanh 0.5, tanh(a) = (1 - exp(-2a)) / (1 + exp(-2a))
#           z = t - 2 u,  y = 1 / (1 + exp(-z)),  L = log(1 + exp(-z))
#
# Backward: dL/dy = -1/y, dy/dz = y (1 - y), so dL/dz = y - 1 = -e with e = 1 / (1 + exp(z))
#           dL/dW2 = h^T dL/dz = [-e t, -e u]
#           dL/dh = dL/dz W2^T = [-e, 2 e]
#           dL/da = dL/dh (1 - h^2) = [-e (1 - t^2), 2 e (1 - u^2)] = [m, n]
#           dL/dW1[i][j] = x[i] dL/da[j] = [[m, n], [2 m, 2 n]]
#           dL/dx = dL/da W1^T = [0.5 m - 0.5 n, 0.25 m + 0.5 n]
T = (1 - math.exp(-2)) / (1 + math.exp(-2))
U = (1 - math.exp(-1)) / (1 + math.exp(-1))
E = 1 / (1 + math.exp(T - 2 * U))
M = -E * (1 - T**2)
N = 2 * E * (1 - U**2)


def probability(z: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy(F.sigmoid(z), target)


@pytest.mark.parametrize("loss_of", [probability, F.binary_cross_entropy_with_logits])
def test_tanh_sigmoid_binary_cross_entropy(loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = tensor([[1.0, 2.0]])
    w1, w2 = tensor([[0.5, -0.5], [0.25, 0.5]]), tensor([[1.0], [-2.0]])
    z = F.linear(F.tanh(F.linear(x, w1.mT)), w2.mT)
    loss = loss_of(z, torch.ones(1, 1, dtype=torch.float64))
    assert_exact(z.detach(), [[T - 2 * U]])
    assert_exact(loss.detach(), math.log(1 + math.exp(2 * U - T)))
    loss.backward()
    assert_exact(w2.grad, [[-E * T], [-E * U]])
    assert_exact(w1.grad, [[M, N], [2 * M, 2 * N]])
    assert_exact(x.grad, [[0.5 * M - 0.5 * N, 0.25 * M + 0.5 * N]])
