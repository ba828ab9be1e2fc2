"""The layers of a model as a table: parameters and output sizes."""

from dataclasses import dataclass

from torch.nn import Module

from training.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of the table.

    Attributes:
        name: Dotted name in the model.
        kind: Name of the class.
        output_size: Shape of the output of one example.
        weights: Parameters other than biases.
        biases: Parameters whose names end in ``bias``.
    """

    name: str
    kind: str
    output_size: tuple[int, ...]
    weights: int
    biases: int

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases


def layer_table(model: Module, inputs: Inputs) -> list[Layer]:
    """Return the layers of ``model`` in the order in which an input passes them.

    Modules that only hold others are left out, unless they have parameters of their own.

    Args:
        model: A model on the device of ``inputs``.
        inputs: What it is fed.
    """
    import torchinfo

    example = inputs.mean.new_zeros(1, *inputs.input_shape)
    names = {id(module): name for name, module in model.named_modules()}
    table = []
    for info in torchinfo.summary(model, input_data=example, mode="eval", verbose=0).summary_list:
        module: Module = info.module
        biases = weights = 0
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                biases += parameter.numel()
            else:
                weights += parameter.numel()
        if info.is_recursive or (any(module.children()) and not weights + biases):
            continue
        table.append(
            Layer(
                name=names[id(module)],
                kind=info.class_name,
                output_size=tuple(info.output_size[1:]),
                weights=weights,
                biases=biases,
            )
        )
    return table
