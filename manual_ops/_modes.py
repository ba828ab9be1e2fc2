"""What watches the arithmetic of a backward pass: higher orders, forward mode, Dynamo, vmap."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def may_overwrite(grad_output: Tensor) -> bool:
    """Whether a backward may work in place on its own fresh temporaries.

    True for plain first-order eager backward. False where another layer watches the arithmetic:
    a graph is being built on it (double backward), Dynamo traces it, forward mode carries
    tangents through it, or ``grad_output`` is a batch of vectors (a temporary that does not
    depend on it is too small to hold the result).
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or forward_ad_active()
        or torch._C._functorch.is_functorch_wrapped_tensor(grad_output)
        or torch._C._functorch.is_legacy_batchedtensor(grad_output)
    )


def forward_ad_active() -> bool:
    """Whether a level of forward mode is open."""
    return forward_ad._current_level >= 0
