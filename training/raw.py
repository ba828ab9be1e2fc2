"""The form in which every data set is read."""

import hashlib
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Raw:
    """A data set as stored, on the CPU.

    Attributes:
        train_inputs: ``(N, C, H, W)`` uint8 images or ``(N, features)`` float32 points.
        train_labels: ``(N,)`` int64 class indices.
        test_inputs: As ``train_inputs``.
        test_labels: As ``train_labels``.
        classes: Class names; a label is an index into them.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def check(self, name: str) -> None:
        """Refuse a data set that training would choke on later, or learn nonsense from.

        Args:
            name: What to call the data set.

        Raises:
            ValueError: A part is empty, labels and inputs differ in number, a label is not a
                class, or the parts differ in the shape of an input.
        """
        for part, inputs, labels in (
            ("training", self.train_inputs, self.train_labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            if len(labels) == 0:
                raise ValueError(f"the {part} set of {name} is empty")
            if len(inputs) != len(labels):
                raise ValueError(
                    f"the {part} set of {name} has {len(inputs)} inputs but {len(labels)} labels"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"the {part} set of {name} has labels from {low} to {high}; its "
                    f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
                )
        train_shape, test_shape = self.train_inputs.shape[1:], self.test_inputs.shape[1:]
        if train_shape != test_shape:
            raise ValueError(
                f"{name} has training inputs of shape {tuple(train_shape)} but test inputs of "
                f"shape {tuple(test_shape)}"
            )

    def digest(self) -> str:
        """Return a checksum of every input and label, and of the names of the classes."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for tensor in (self.train_inputs, self.train_labels, self.test_inputs, self.test_labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()
