"""Examples of one data set in the form of those that a model was trained on."""

import torch
from torch import Tensor

from training.data import Split
from training.inputs import Inputs

GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R 601, as Pillow weighs them


def adapt(split: Split, found: Inputs, wanted: Inputs) -> Split:
    """Return ``split`` with the channels and the labels of the inputs ``wanted``.

    Grey images get three equal channels, or colours become grey; classes are found by name.

    Args:
        split: Examples of another data set.
        found: Its inputs.
        wanted: What the model was trained on.

    Raises:
        ValueError: The inputs differ in size, or a class of the examples is not known.
    """
    inputs = split.inputs
    if found.has_images and wanted.has_images:
        inputs = _with_channels(inputs, wanted.input_shape[0])
    if tuple(inputs.shape[1:]) != wanted.input_shape:
        raise ValueError(
            f"the run was trained on inputs of shape {wanted.input_shape}, "
            f"this data set has {found.input_shape}"
        )
    return Split(inputs, _as_classes(split.labels, found.classes, wanted.classes))


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 3 and channels == 1:
        weights = torch.tensor(GREY, device=images.device)
        grey = torch.einsum("nchw,c->nhw", images.float(), weights)
        return grey.round().to(torch.uint8).unsqueeze(1)
    return images


def _as_classes(labels: Tensor, found: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Return labels of the classes ``found`` as labels of the classes ``wanted``."""
    if found == wanted:
        return labels
    used = [found[label] for label in labels.unique().tolist()]
    unknown = [name for name in used if name not in wanted]
    if unknown:
        raise ValueError(
            f"the model does not know the classes {', '.join(unknown[:5])}; "
            f"it knows {', '.join(wanted[:5])}{', ...' if len(wanted) > 5 else ''}"
        )
    places = [wanted.index(name) if name in wanted else -1 for name in found]
    return torch.tensor(places, device=labels.device)[labels]
