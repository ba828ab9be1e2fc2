"""A second implementation in plain Python loops: forward and gradient, each derived by hand.

It shares no line with the library and uses no tensor operation: nested lists in, nested lists out.
``g`` is the gradient of a loss with respect to the output, ``dx`` with respect to ``x``.
"""

import itertools
import math
from typing import Any

Vector = list[float]
Matrix = list[Vector]
Images = list[list[Matrix]]  # [n][c][h][w]


def filled(shape: tuple[int, ...], value: float = 0.0) -> Any:
    """Nested lists of the given shape."""
    if not shape:
        return value
    return [filled(shape[1:], value) for _ in range(shape[0])]


def shape_of(images: Images) -> tuple[int, int, int, int]:
    return len(images), len(images[0]), len(images[0][0]), len(images[0][0][0])


def linear(x: Matrix, w: Matrix, b: Vector) -> Matrix:
    """``y[n][o] = b[o] + sum_i x[n][i] w[o][i]``."""
    return [
        [b[o] + sum(x[n][i] * w[o][i] for i in range(len(w[o]))) for o in range(len(w))]
        for n in range(len(x))
    ]


def linear_gradients(x: Matrix, w: Matrix, g: Matrix) -> tuple[Matrix, Matrix, Vector]:
    """Every product ``x[n][i] w[o][i]`` sends ``g[n][o]`` times the one factor to the other."""
    dx, dw, db = filled((len(x), len(x[0]))), filled((len(w), len(w[0]))), filled((len(w),))
    for n, o in itertools.product(range(len(x)), range(len(w))):
        db[o] += g[n][o]
        for i in range(len(x[0])):
            dx[n][i] += g[n][o] * w[o][i]
            dw[o][i] += g[n][o] * x[n][i]
    return dx, dw, db


def relu(x: Matrix) -> Matrix:
    """``y = max(x, 0)``."""
    return [[value if value > 0 else 0.0 for value in row] for row in x]


def relu_gradient(x: Matrix, g: Matrix) -> Matrix:
    """The slope is 1 above 0 and 0 elsewhere, 0 at the kink included."""
    return [
        [up if value > 0 else 0.0 for value, up in zip(row, ups, strict=True)]
        for row, ups in zip(x, g, strict=True)
    ]


def softmax(x: Vector) -> Vector:
    """``p[c] = exp(x[c]) / sum_k exp(x[k])``, shifted by the maximum so that nothing overflows."""
    top = max(x)
    powers = [math.exp(value - top) for value in x]
    return [power / sum(powers) for power in powers]


def softmax_loss(x: Matrix, target: list[int]) -> float:
    """Mean over ``n`` of ``-log p[n][t[n]] = log sum_k exp(x[n][k]) - x[n][t[n]]``."""
    total = 0.0
    for row, label in zip(x, target, strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(value - top) for value in row)) - row[label]
    return total / len(x)


def softmax_loss_gradient(x: Matrix, target: list[int], g: float) -> Matrix:
    """``dx[n][c] = g (p[n][c] - [c = t[n]]) / N``: log-sum-exp has the gradient p."""
    return [
        [g * (p - (1.0 if c == label else 0.0)) / len(x) for c, p in enumerate(softmax(row))]
        for row, label in zip(x, target, strict=True)
    ]


def batch_norm(x: Images, w: Vector, b: Vector, eps: float) -> Images:
    """``y = w (x - m) / s + b`` with mean m and deviation s of each channel, over n, h and w."""
    samples, channels, height, width = shape_of(x)
    y = filled((samples, channels, height, width))
    for c in range(channels):
        mean, deviation = _moments(x, c, eps)
        for n, i, j in itertools.product(range(samples), range(height), range(width)):
            y[n][c][i][j] = w[c] * (x[n][c][i][j] - mean) / deviation + b[c]
    return y


def _moments(x: Images, c: int, eps: float) -> tuple[float, float]:
    values = [value for image in x for row in image[c] for value in row]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return mean, math.sqrt(variance + eps)


def batch_norm_gradients(
    x: Images, w: Vector, g: Images, eps: float
) -> tuple[Images, Vector, Vector]:
    """Through x itself, through the mean, and through the variance, step by step.

    With ``h = (x - m) / s`` and ``k = g w`` for M values in a channel:
    dv = sum k (x - m) (-1/2) s^-3, dm = -sum k / s (the variance does not move with m),
    dx = k / s + dv 2 (x - m) / M + dm / M.
    """
    samples, channels, height, width = shape_of(x)
    places = list(itertools.product(range(samples), range(height), range(width)))
    dx, dw, db = (
        filled((samples, channels, height, width)),
        filled((channels,)),
        filled((channels,)),
    )
    for c in range(channels):
        mean, deviation = _moments(x, c, eps)
        d_variance = d_mean = 0.0
        for n, i, j in places:
            centred, up = x[n][c][i][j] - mean, g[n][c][i][j]
            dw[c] += up * centred / deviation
            db[c] += up
            d_variance += up * w[c] * centred * -0.5 / deviation**3
            d_mean -= up * w[c] / deviation
        for n, i, j in places:
            dx[n][c][i][j] = (
                g[n][c][i][j] * w[c] / deviation
                + d_variance * 2 * (x[n][c][i][j] - mean) / len(places)
                + d_mean / len(places)
            )
    return dx, dw, db


def _products(x: Images, w: Images, stride: int, padding: int, dilation: int, groups: int) -> Any:
    """Every product of a convolution, as indices of output, input and weight."""
    samples, _, height, width = shape_of(x)
    outputs, inputs, kernel_h, kernel_w = shape_of(w)
    out_h = (height + 2 * padding - dilation * (kernel_h - 1) - 1) // stride + 1
    out_w = (width + 2 * padding - dilation * (kernel_w - 1) - 1) // stride + 1
    for n, o, i, j, c, u, v in itertools.product(
        *map(range, (samples, outputs, out_h, out_w, inputs, kernel_h, kernel_w))
    ):
        row = i * stride - padding + u * dilation
        column = j * stride - padding + v * dilation
        if 0 <= row < height and 0 <= column < width:
            group = o // (outputs // groups)
            yield (n, o, i, j), (n, group * inputs + c, row, column), (o, c, u, v)


def conv2d(
    x: Images, w: Images, b: Vector, stride: int, padding: int, dilation: int, groups: int
) -> Images:
    """Sum of the products of each output, plus its channel's bias."""
    samples, _, height, width = shape_of(x)
    outputs, _, kernel_h, kernel_w = shape_of(w)
    out_h = (height + 2 * padding - dilation * (kernel_h - 1) - 1) // stride + 1
    out_w = (width + 2 * padding - dilation * (kernel_w - 1) - 1) // stride + 1
    y = [[filled((out_h, out_w), b[o]) for o in range(outputs)] for _ in range(samples)]
    for (n, o, i, j), (_, c, p, q), (_, d, u, v) in _products(
        x, w, stride, padding, dilation, groups
    ):
        y[n][o][i][j] += x[n][c][p][q] * w[o][d][u][v]
    return y


def conv2d_gradients(
    x: Images, w: Images, g: Images, stride: int, padding: int, dilation: int, groups: int
) -> tuple[Images, Images, Vector]:
    """Every product sends the gradient of its output times the one factor to the other."""
    dx, dw = filled(shape_of(x)), filled(shape_of(w))
    for (n, o, i, j), (_, c, p, q), (_, d, u, v) in _products(
        x, w, stride, padding, dilation, groups
    ):
        dx[n][c][p][q] += g[n][o][i][j] * w[o][d][u][v]
        dw[o][d][u][v] += g[n][o][i][j] * x[n][c][p][q]
    db = [sum(v for image in g for row in image[o] for v in row) for o in range(len(w))]
    return dx, dw, db


def max_pool2d(
    x: Images, kernel: int, stride: int, padding: int
) -> tuple[Images, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The largest value of each window, and pairs of output and input index: who won where.

    The first of equal values in reading order wins.
    """
    samples, channels, height, width = shape_of(x)
    out_h = (height + 2 * padding - kernel) // stride + 1
    out_w = (width + 2 * padding - kernel) // stride + 1
    y, winners = filled((samples, channels, out_h, out_w)), []
    for n, c, i, j in itertools.product(*map(range, (samples, channels, out_h, out_w))):
        best, where = -math.inf, (0, 0)
        for row in range(i * stride - padding, i * stride - padding + kernel):
            for column in range(j * stride - padding, j * stride - padding + kernel):
                inside = 0 <= row < height and 0 <= column < width
                if inside and x[n][c][row][column] > best:
                    best, where = x[n][c][row][column], (row, column)
        y[n][c][i][j] = best
        winners.append(((n, c, i, j), (n, c, *where)))
    return y, winners


def max_pool2d_gradient(x: Images, g: Images, kernel: int, stride: int, padding: int) -> Images:
    """Each output's gradient goes to the value that won; a value may win several windows."""
    dx = filled(shape_of(x))
    for (n, c, i, j), (_, _, row, column) in max_pool2d(x, kernel, stride, padding)[1]:
        dx[n][c][row][column] += g[n][c][i][j]
    return dx
