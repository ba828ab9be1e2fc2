"""From what was observed to what is likely wrong, and what to do."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace

from manual_ops.check.report import SAME, Row

IMPURE = (
    "Forward gives other numbers when it is called again with the same inputs: it keeps state (a "
    "counter, a running mean), reads a clock, or draws from a generator that torch.manual_seed "
    "does not set."
)
ONCE_DIFFERENTIABLE = "backward is marked once_differentiable"
NOT_FINITE = (
    "nan or infinite where the function is smooth: 0 / 0, a log or a root of 0, an overflow."
)
SPARSE = "A sparse gradient, which most of torch does not take: return a dense one."

# Not mistakes: the op does not claim to do this.
_UNSUPPORTED = {
    r"Unsupported custom jvp": (
        "torch.compile takes no Function that defines jvp: call a twin without it while "
        "torch.compiler.is_compiling()"
    ),
    r"ApplyTemplate": (
        "torch.compile cannot map a Function: call its formula while torch.compiler.is_compiling()"
    ),
    r"once_differentiable": ONCE_DIFFERENTIABLE,
    r"must implement the jvp|does not support it because it has not been implemented"
    r"|forward AD.*(not|n't) (been )?(implement|support)": "forward mode: it has no formula (jvp)",
    r"generate_vmap_rule|does not have vmap support|define.*vmap staticmethod": (
        "vmap: the Function has neither generate_vmap_rule = True nor a vmap staticmethod"
    ),
    r"override the setup_context": "torch.func: the Function has no setup_context",
}

UNSUPPORTED = frozenset(_UNSUPPORTED.values())

# By check: the likely cause of a failure that no message explains; first of backward and jvp.
_FORMULAS: dict[str, str] = {
    "gradient": (
        "The formula in backward is wrong for this input: a factor, a sum over a broadcast or "
        "batch dimension, a transposition or a term is missing."
    ),
    "batched gradient": (
        "Backward takes grad_output for a single one: it works in place on a tensor without the "
        "batch, or on detached data."
    ),
    "double backward": (
        "The gradient is right but the second derivative is not: an intermediate computed in "
        "forward is saved and taken for a constant, or backward cuts the graph (detach, .data, "
        "no_grad, numpy). Save inputs and outputs alone, or return the intermediate as a further "
        "output, and add its cotangent in backward. Where no second derivative is meant, mark "
        "backward once_differentiable."
    ),
    "third order": (
        "Right up to the second derivative: backward of backward takes for a constant what is "
        "none, or calls a torch function that cannot be differentiated that often."
    ),
    "forward mode": (
        "jvp is wrong: a factor, or the tangent of one of the inputs, is missing. It has to be "
        "the formula of forward, differentiated and linear in the tangents."
    ),
    "forward over reverse": (
        "Backward loses tangents: it detaches, works on .data, or uses an intermediate of forward "
        "that is no output."
    ),
    "reverse over forward": (
        "jvp cannot be differentiated: it detaches, works on .data, or uses an intermediate of "
        "forward that is no output."
    ),
    "jvp of jvp": (
        "torch calls a Function's jvp with forward mode switched off, so that a jvp of it is "
        "silently 0: switch it on in there, by torch.autograd.forward_ad._set_fwd_grad_enabled."
    ),
    "third order, forward": (
        "Right up to the second derivative: jvp or backward takes for a constant what is none."
    ),
}
_BY_CHECK: dict[str, str] = _FORMULAS | {
    "vmap": (
        "Samples are mixed up: the vmap staticmethod forgets in_dims, or the op takes a fixed "
        "dimension for the batch. generate_vmap_rule = True derives it from forward."
    ),
    "per-sample gradients": (
        "Backward mixes samples up: it takes a fixed dimension for the batch, or keeps state."
    ),
    "backward through vmap": (
        "Backward mixes samples up: it takes a fixed dimension for the batch, or keeps state."
    ),
    "layouts": (
        "Forward or backward takes a tensor for contiguous: no as_strided, no addresses, reshape "
        "instead of view."
    ),
    "grad_output layouts": (
        "Backward takes grad_output for contiguous: no as_strided, no addresses, reshape instead "
        "of view."
    ),
    "channels_last": (
        "A step makes its result contiguous, and the next layer has to turn it back: keep the "
        "memory format of the input."
    ),
    "empty batch": (
        "A mean of nothing, or the first of no samples: divide by max(count, 1), slice instead of "
        "indexing."
    ),
    "autocast": (
        "Cast inputs before the Function, as torch.nn's op of that kind does under autocast, and "
        "gradients to their input's dtype; or decorate forward and backward with torch.amp's "
        "custom_fwd and custom_bwd."
    ),
    "meta device": (
        "A tensor is made on another device, or values are read: x.new_zeros, device=x.device."
    ),
    "precision": (
        "Digits are lost: in a difference of nearly equal numbers, or in a long sum in low "
        "precision. Centre before squaring, sum in float32."
    ),
    "values against reference": (
        "Another function than the reference, or the same with fewer digits: in a difference of "
        "nearly equal numbers, or in a sum in low precision."
    ),
    "gradients against reference": (
        "Another gradient than the reference's, or the same with fewer digits: see gradient and "
        "precision."
    ),
    "compile, other batch size": (
        "A size is baked in: len(), int() or a tensor made once; take sizes from input.shape."
    ),
    "compiled transforms": (
        "Another branch runs while compiling under torch.func, and computes something else."
    ),
    "compile": "Compiled code gives other numbers: the op reads the clock, memory, or a global.",
    "jacobian": "Forward mode and backward disagree: jvp or backward is wrong under torch.func.",
    "hessian": "Double backward and torch.func disagree: jvp or backward is wrong when nested.",
    "gradients returned": (
        "Sum it to its input's shape (sum_to_size) and cast it to its dtype: autograd does so "
        "silently, after the memory and the time are spent."
    ),
    "undefined gradients": (
        "Not linear in grad_output: where no gradient comes in, none may go out."
    ),
    "needs_input_grad": (
        "Compute each gradient under `if ctx.needs_input_grad[i]`, and return None otherwise."
    ),
    "same tensor twice": (
        "Backward tells its inputs apart by identity or address: return the gradient of each "
        "argument, autograd sums them."
    ),
    "determinism": (
        "Backward draws random numbers, or depends on time or on the order of threads: draw in "
        "forward and save what was drawn."
    ),
    "inputs unchanged": (
        "A call in place (mul_, +=, out=, .data) on memory that is not the op's own: use the "
        "out-of-place call, or clone before."
    ),
    "no grad mode": (
        "Forward depends on grad mode: what differs between training and evaluation is an argument."
    ),
    "saved tensors": (
        "A tensor on ctx escapes in-place checks, offloading and vmap, and an output there keeps "
        "its graph alive: hand it to ctx.save_for_backward."
    ),
    "saved bytes": (
        "Save None for what no gradient asked for needs: look at ctx.needs_input_grad."
    ),
    "checkpoint": (
        "Forward computes something else when it is called again: it keeps state, or draws random "
        "numbers that torch does not know of."
    ),
    "backward twice": "Backward uses up what was saved: it writes to it, or deletes it from ctx.",
    "in-place change of output": (
        "Backward reads the output from where autograd does not watch it: hand it to "
        "ctx.save_for_backward."
    ),
    "freed without garbage collection": (
        "An output kept as an attribute of ctx refers to ctx itself, or a global refers to it: "
        "hand it to ctx.save_for_backward."
    ),
}

# By what torch says, before that.
_BY_MESSAGE: dict[str, str] = {
    r"incorrect number of gradients": (
        "backward returns one gradient for each argument of forward, None for what is not a Tensor."
    ),
    r"gradient different than None at position": (
        "backward returns a gradient for an argument that is not a Tensor: return None there."
    ),
    r"returned an invalid gradient": (
        "A gradient has its input's shape: sum over what was broadcast, transpose what was "
        "transposed; or two gradients have changed places."
    ),
    r"expected Variable or None": "backward returns tensors or None, not Python numbers.",
    r"either the backward or vjp": "The Function has no backward: write it as a staticmethod.",
    r"modified by an inplace operation": (
        "A saved tensor was written to after forward: work out of place, or save a copy."
    ),
    r"leaf Variable that requires grad .* in-place": (
        "The op writes to its input: use the out-of-place call, or clone before."
    ),
    r"is a view and is being modified inplace": (
        "The Function returns a view of its input: return a clone, or leave views to torch."
    ),
    r"save_for_backward can only save": (
        "save_for_backward takes tensors and None; numbers become attributes of ctx."
    ),
    r"unsupported operand .*NoneType|'NoneType' object": (
        "None is taken for a tensor: after set_materialize_grads(False) an output without gradient "
        "comes as None, and an input that needs none may be saved as None."
    ),
    r"does not require grad and does not have a grad_fn": (
        "The result is cut off from its inputs: by detach, .data, numpy or torch.no_grad."
    ),
    r"use_reentrant=True, torch.utils.checkpoint is incompatible": (
        "The op checkpoints its activations in the way that knows .backward() alone: "
        "use_reentrant=False."
    ),
    r"graph a second time|already been freed": (
        "A graph is used that is gone: the op keeps tensors of an earlier call, or backward "
        "differentiates what forward recorded (retain_graph=True keeps that)."
    ),
    r"already unpacked once": (
        "Each ctx.saved_tensors unpacks all again: read it once, into names."
    ),
    r"data-dependent (control flow|branching|expression)|aten::(is_nonzero|item)|calling \.item": (
        "Python looks at a tensor's value (if, bool, item, float): use torch.where or a product "
        "with a mask."
    ),
    r"support dynamic shape|aten::(nonzero|masked_select)": (
        "The shape of a result depends on values: use torch.where instead of a boolean index."
    ),
    r"Batching rule not implemented for aten::(detach|\w*_copy)": (
        "detach or numpy in backward makes its result a constant, and no batch goes through it."
    ),
    r"call numpy\(\) on Tensor that requires grad": (
        "Backward leaves torch (numpy), so that it cannot be differentiated again: mark it "
        "once_differentiable, or let it call a Function of its own."
    ),
    r"saved_variables": "ctx.saved_variables is deprecated: read ctx.saved_tensors.",
    r"Batching rule not implemented": (
        "No batch goes through this call: reshape instead of flatten, @ instead of einsum; or "
        "write the formula otherwise."
    ),
    r"not possible because there exists a Tensor|doesn't match the broadcast shape": (
        "An in-place call on a tensor without the batch (zeros, a saved tensor): use the "
        "out-of-place call."
    ),
    r"randomness error mode": "The op draws random numbers: draw outside and pass them in.",
    r"accessing `data` under vmap": ".data and detach go behind autograd's back: drop them.",
    r"data pointer of|doesn't have storage|numpy\(\)": (
        "The op leaves torch (numpy, data_ptr, a kernel of its own), and transforms end there: "
        "generate_vmap_rule wants torch calls alone, else write a vmap staticmethod."
    ),
    r"forward gradient that has a different size": "A tangent has its output's shape, in jvp.",
    r"its forward grad to be floating point": "jvp returns a tangent for each output, not None.",
    r"view size is not compatible": (
        "view assumes contiguous memory, which gradients need not be: use reshape."
    ),
    r"to have the same dtype": (
        "Two dtypes meet: cast inputs before the op, and gradients to their input's dtype."
    ),
    r"\b[Ss]parse\b|Sparse(CPU|CUDA|Meta)|sparse_(coo|csr)": SPARSE,
}

# Where an error says less than that it comes under this condition.
_CONDITIONS = ("autocast", "meta device")

_RAISED = "The op raises this where the check leads it: do the same by hand to see the traceback."

# What spoils the numbers of which other checks, gravest first; None stands for all.
_SPOILS: dict[str, tuple[str, ...] | None] = {
    "inputs unchanged": None,
    "determinism": None,
    "no grad mode": None,
    "layouts": ("vmap", "backward through vmap", "grad_output layouts"),
    "grad_output layouts": ("backward through vmap",),
    "gradient": (
        *("batched gradient", "double backward", "third order", "forward over reverse"),
        *("third order, forward", "hessian", "empty batch", "gradients against reference"),
    ),
    "double backward": (
        *("third order", "forward over reverse", "third order, forward", "hessian"),
    ),
    "forward mode": (
        *("forward over reverse", "reverse over forward", "jvp of jvp", "third order, forward"),
        *("jacobian", "hessian"),
    ),
    "vmap": ("per-sample gradients", "backward through vmap", "jacobian", "hessian"),
    "values against reference": ("gradients against reference",),
    "saved tensors": ("checkpoint", "in-place change of output", "backward twice"),
    "jvp of jvp": ("third order, forward",),
}


_NO_FUNCTION = (
    "There is no Function here: the op cuts the graph (detach, .data, numpy, item, no_grad), or a "
    "torch call in it has this defect."
)


def trace_back(rows: Iterable[Row], *, has_function: bool) -> Iterator[Row]:
    """Look at all rows together to tell the causes of failures.

    Args:
        rows: Of all checks of one op.
        has_function: Whether the op has a backward of its own to blame.
    """
    rows = tuple(rows)
    failed = {row.check for row in rows if row.failed}
    raised: dict[str, str] = {}
    for row in rows:
        sources = [
            source
            for source, spoiled in _SPOILS.items()
            if source in failed and (row.check in spoiled if spoiled else True)
        ]
        numbers = row.absolute is not None or not row.cause
        if row.failed and numbers and sources and sources[0] != row.check:
            row = replace(row, cause=f"Probably follows from {sources[0]!r}: mend that first.")
        elif row.failed and row.cause in _FORMULAS.values() and not has_function:
            row = replace(row, cause=_NO_FUNCTION)
        elif row.failed and row.absolute is None:
            first = raised.setdefault(row.detail, row.check)
            row = row if first == row.check else replace(row, cause=f"{SAME}{first!r}.")
        yield row


def unsupported(error: BaseException) -> str | None:
    """Return the reason why a check does not apply, if ``error`` says that it does not."""
    text = str(error)
    return next((why for pattern, why in _UNSUPPORTED.items() if re.search(pattern, text)), None)


def explain(check: str, error: BaseException | None = None) -> str:
    """Return the likely cause of a failure of ``check``, and what to do; empty if unknown."""
    if error is not None:
        text = str(error)
        for pattern, cause in _BY_MESSAGE.items():
            if re.search(pattern, text):
                return cause
        return _by_dynamo(text) or (_BY_CHECK[check] if check in _CONDITIONS else _RAISED)
    return _BY_CHECK.get(check, "")


def _by_dynamo(message: str) -> str:
    """What torch.compile itself explains, and its first hint."""
    explanation = re.findall(r"Explanation: (.+)", message)
    hints = [h for h in re.findall(r"Hint: (.+)", message) if "eport an issue" not in h]
    told = ". ".join(line.rstrip(".") for line in explanation[:1] + hints[:1])
    return textwrap.shorten(told, 300, placeholder=" ...")
