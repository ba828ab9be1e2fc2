"""Wrong use raises torch.nn's error type, in words that name argument, expected and found."""

from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor

from manual_ops import functional
from manual_ops.testing.compositions import torch_op
from tests.bad_calls import BAD_CALLS, BadCall


def error_of(op: Any, arguments: Mapping[str, Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        op(**arguments)
    return caught.value


@pytest.mark.filterwarnings("ignore:Using a target size")  # mse_loss warns before it raises
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("call", BAD_CALLS, ids=lambda call: call.id)
def test_error_type_and_message(call: BadCall, grad: bool) -> None:
    arguments = dict(call.arguments)
    name, value = next(iter(arguments.items()))
    if grad and isinstance(value, Tensor) and value.is_floating_point():
        arguments[name] = value.clone().requires_grad_()
    expected = error_of(torch_op(call.op), arguments)
    found = error_of(getattr(functional, call.op), arguments)
    assert type(found) is type(expected), f"{found!r}, torch.nn raises {expected!r}"
    message = str(found).lower()
    missing = [word for word in call.mentions if word.lower() not in message]
    assert not missing, f"{message!r} does not mention {missing}"
