"""Time a training step of mnist-cnn against the same network in NumPy, written as courses do.

python -m benchmarks.numpy_cnn

NumPy's convolution lays the windows of its input out as rows (im2col), and is one product of BLAS
then. Courses read and add up windows in two ways: by a slice for each place in the window, or by
arrays of indices and np.add.at. Most leave NumPy its float64; ours is float32 in every line. As
courses do, NumPy computes the gradient of the images as well: a twentieth of its time by slices, a
tenth by indices.
tests/test_numpy_cnn.py holds both sides to the same numbers.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import manual_ops.nn
from benchmarks.measure import compare, keep_memory
from benchmarks.models import Case, side
from models import build

CASE = Case("mnist-cnn", (1, 28, 28), 128)

Array = npt.NDArray[Any]
# Windows have the shape (N, channels, size, size, rows, columns).
Read = Callable[[Array, int, int, int, int], Array]
Add = Callable[[Array, Array, int], None]


def read_by_slices(images: Array, size: int, stride: int, rows: int, columns: int) -> Array:
    """Return the windows, copied place by place."""
    windows = np.empty((*images.shape[:2], size, size, rows, columns), images.dtype)
    for y, x in np.ndindex(size, size):
        windows[:, :, y, x] = images[
            :, :, y : y + stride * rows : stride, x : x + stride * columns : stride
        ]
    return windows


def add_by_slices(images: Array, windows: Array, stride: int) -> None:
    """Add the windows to where they were read."""
    *_, size, rows, columns = windows.shape
    for y, x in np.ndindex(size, size):
        images[:, :, y : y + stride * rows : stride, x : x + stride * columns : stride] += windows[
            :, :, y, x
        ]


def indices(size: int, stride: int, rows: int, columns: int) -> Any:
    """Return the index of all windows: all images and channels, and each place's row and column."""
    y = np.arange(size)[:, None, None, None] + stride * np.arange(rows)[:, None]
    x = np.arange(size)[:, None, None] + stride * np.arange(columns)
    return slice(None), slice(None), y, x


def read_by_indices(images: Array, size: int, stride: int, rows: int, columns: int) -> Array:
    """Return the windows, gathered at once."""
    windows: Array = images[indices(size, stride, rows, columns)]
    return windows


def add_by_indices(images: Array, windows: Array, stride: int) -> None:
    """Add the windows to where they were read."""
    *_, size, rows, columns = windows.shape
    np.add.at(images, indices(size, stride, rows, columns), windows)


WAYS = {"slices": (read_by_slices, add_by_slices), "indices": (read_by_indices, add_by_indices)}


class Layer:
    """Base of the layers: ``forward`` keeps what ``backward`` needs."""

    def __init__(self, *parameters: Array) -> None:
        self.parameters = parameters
        self.gradients: tuple[Array, ...] = ()

    def forward(self, input: Array) -> Array:
        """Return the output."""
        raise NotImplementedError

    def backward(self, gradient: Array) -> Array:
        """Keep the gradients of the parameters, and return the input's."""
        raise NotImplementedError


class WindowLayer(Layer):
    """Base of the layers that work on windows of images, each window a row of a matrix."""

    size, stride, padding = 2, 2, 0

    def __init__(self, way: str, *parameters: Array) -> None:
        super().__init__(*parameters)
        self.read, self.add = WAYS[way]

    def im2col(self, images: Array) -> Array:
        """Return ``(N * rows * columns, channels * size * size)``."""
        self.shape = n, _, *sides = images.shape
        self.rows, self.columns = (
            (length + 2 * self.padding - self.size) // self.stride + 1 for length in sides
        )
        border = (self.padding, self.padding)
        padded = np.pad(images, ((0, 0), (0, 0), border, border))
        windows = self.read(padded, self.size, self.stride, self.rows, self.columns)
        return windows.transpose(0, 4, 5, 1, 2, 3).reshape(n * self.rows * self.columns, -1)

    def col2im(self, matrix: Array) -> Array:
        """Return images in which the windows of ``matrix`` are added up."""
        n, channels, height, width = self.shape
        windows = matrix.reshape(n, self.rows, self.columns, channels, self.size, self.size)
        p = self.padding
        padded = np.zeros((n, channels, height + 2 * p, width + 2 * p), matrix.dtype)
        self.add(padded, windows.transpose(0, 3, 4, 5, 1, 2), self.stride)
        return padded[:, :, p : p + height, p : p + width]

    def images(self, pixels: Array) -> Array:
        """Return pixels, one for each window and channel, as images."""
        return pixels.reshape(self.shape[0], self.rows, self.columns, -1).transpose(0, 3, 1, 2)


class Convolution(WindowLayer):
    """Convolution that keeps the size of images."""

    size, stride, padding = 5, 1, 2

    def forward(self, input: Array) -> Array:
        """Return the windows times the kernels, plus the bias."""
        weight, bias = self.parameters
        self.matrix = self.im2col(input)
        return self.images(self.matrix @ weight.reshape(len(weight), -1).T + bias)

    def backward(self, gradient: Array) -> Array:
        """Keep the gradients of the kernels and the bias; return the input's."""
        weight, _ = self.parameters
        pixels = gradient.transpose(0, 2, 3, 1).reshape(-1, len(weight))
        self.gradients = (pixels.T @ self.matrix).reshape(weight.shape), pixels.sum(axis=0)
        return self.col2im(pixels @ weight.reshape(len(weight), -1))


class MaxPool(WindowLayer):
    """Maximum of windows that do not overlap; of equal values, the first."""

    def forward(self, input: Array) -> Array:
        """Return the largest of each window."""
        matrix = self.im2col(input).reshape(-1, self.size**2)
        self.places = np.arange(len(matrix)), matrix.argmax(axis=1)
        return self.images(matrix[self.places])

    def backward(self, gradient: Array) -> Array:
        """Return the gradient at the place that was the largest, 0 elsewhere."""
        matrix = np.zeros((gradient.size, self.size**2), gradient.dtype)
        matrix[self.places] = gradient.transpose(0, 2, 3, 1).ravel()
        return self.col2im(matrix)


class ReLU(Layer):
    """``max(input, 0)``."""

    def forward(self, input: Array) -> Array:
        """Return what is positive, else 0."""
        self.positive = input > 0
        return np.maximum(input, 0)

    def backward(self, gradient: Array) -> Array:
        """Return the gradient where the input was positive."""
        return gradient * self.positive


class Dense(Layer):
    """Linear layer of flattened inputs."""

    def forward(self, input: Array) -> Array:
        """Return the product with the weight, plus the bias."""
        weight, bias = self.parameters
        self.shape, self.flat = input.shape, input.reshape(len(input), -1)
        return self.flat @ weight.T + bias

    def backward(self, gradient: Array) -> Array:
        """Keep the gradients of the weight and the bias; return the input's."""
        weight, _ = self.parameters
        self.gradients = gradient.T @ self.flat, gradient.sum(axis=0)
        return (gradient @ weight).reshape(self.shape)


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean of -log softmax at the labels, and its gradient."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    hits = np.arange(len(labels)), labels
    loss = -np.log(probabilities[hits]).mean()
    probabilities[hits] -= 1
    return float(loss), probabilities / len(labels)


class Network:
    """mnist-cnn, and SGD with momentum.

    Args:
        weights: Of mnist-cnn's parameters, in their order; they are changed in place.
        way: How windows are read and added up, a key of ``WAYS``.
    """

    def __init__(self, weights: list[Array], way: str) -> None:
        self.layers = [
            *(Convolution(way, *weights[:2]), ReLU(), MaxPool(way)),
            *(Convolution(way, *weights[2:4]), ReLU(), MaxPool(way)),
            Dense(*weights[4:]),
        ]
        self.parameters = weights
        self.velocities = [np.zeros_like(weight) for weight in weights]

    def gradients(self, images: Array, labels: Array) -> tuple[float, Array, list[Array]]:
        """Return the loss, the gradient of the images and those of the parameters."""
        activation = images
        for layer in self.layers:
            activation = layer.forward(activation)
        loss, gradient = cross_entropy(activation, labels)
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return loss, gradient, [each for layer in self.layers for each in layer.gradients]

    def step(self, images: Array, labels: Array, rate: float = 1e-3, momentum: float = 0.9) -> None:
        """Change the parameters as one batch has it."""
        *_, gradients = self.gradients(images, labels)
        steps = zip(self.parameters, gradients, self.velocities, strict=True)
        for parameter, gradient, velocity in steps:
            velocity *= momentum
            velocity += gradient
            parameter -= rate * velocity


def main() -> None:
    """Print a line for each way to write the NumPy side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each line, at least")
    args = parser.parse_args()
    keep_memory()
    ours, _ = side(CASE, manual_ops.nn, compiled=False, bfloat16=False, fuse=False)
    parameters = build(CASE.model, torch.nn, CASE.input_shape, 10).parameters()
    weights = [parameter.detach().numpy() for parameter in parameters]
    random = np.random.default_rng(0)
    images = random.standard_normal((CASE.batch_size, *CASE.input_shape))
    labels = random.integers(10, size=CASE.batch_size)
    print(f"{'mnist-cnn batch 128':24} {'ours':>11} {'NumPy':>11}  times as fast (quartiles)")
    for way, dtype in (("slices", "float32"), ("slices", "float64"), ("indices", "float64")):
        network = Network([weight.astype(dtype) for weight in weights], way)
        batch = images.astype(dtype), labels
        times = compare(ours, lambda: network.step(*batch), args.seconds, pairs=7)  # noqa: B023
        print(
            f"{f'NumPy by {way}, {dtype}':24} "
            f"{times.ours * 1e3:8.2f} ms {times.torch * 1e3:8.2f} ms  "
            f"{1 / times.ratio:5.1f} ({1 / times.high:.1f}-{1 / times.low:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
