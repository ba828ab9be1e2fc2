"""From what was observed to what is likely wrong, and what to do."""

import re

# Not mistakes: the op does not claim to do this.
_UNSUPPORTED = {
    r"once_differentiable": "backward is marked once_differentiable",
    r"must implement the jvp|does not support it because it has not been implemented"
    r"|forward AD.*(not|n't) (been )?(implement|support)": "forward mode: the Function has no jvp",
    r"generate_vmap_rule|does not have vmap support|define.*vmap staticmethod": (
        "vmap: the Function has neither generate_vmap_rule = True nor a vmap staticmethod"
    ),
    r"override the setup_context": "torch.func: the Function has no setup_context",
}

# By check: the likely cause of a failure that no message explains.
_BY_CHECK: dict[str, str] = {
    "gradient": (
        "The formula in backward is wrong for this input: a factor, a sum over a broadcast or "
        "batch dimension, a transposition or a term is missing."
    ),
    "double backward": (
        "The gradient is right but the second derivative is not: an intermediate computed in "
        "forward is saved and taken for a constant. Save inputs and outputs alone, or return the "
        "intermediate as an output; see docs/write_your_own_op.md."
    ),
}

# By message, before that.
_BY_MESSAGE: dict[str, str] = {}


def unsupported(error: BaseException) -> str | None:
    """Return the reason why a check does not apply, if ``error`` says that it does not."""
    text = str(error)
    return next((why for pattern, why in _UNSUPPORTED.items() if re.search(pattern, text)), None)


def explain(check: str, error: BaseException | None = None) -> str:
    """Return the likely cause of a failure of ``check``, and what to do; empty if unknown."""
    if error is not None:
        for pattern, cause in _BY_MESSAGE.items():
            if re.search(pattern, str(error)):
                return cause
        return ""
    return _BY_CHECK.get(check, "")
