"""Generated calls, good and bad, come to what torch.nn's come to."""

import inspect
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from manual_ops import functional
from manual_ops.testing.cases import CASES
from manual_ops.testing.compositions import torch_op
from tests.properties.calls import CALLS
from tests.properties.exceptions import KNOWN, Known, known_of
from tests.properties.outcomes import Exact, difference, outcome_of
from tests.properties.tensors import Made, layouts, seeds
from tests.test_inventory import OPS

EXAMPLES = 2000
SEED = 0  # the same calls each time; python -m tests.properties searches elsewhere
# Hypothesis also draws constants that it finds in the modules imported so far, which depend on the
# tests that ran before in this process.
providers._get_local_constants = providers.Constants
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Their shape and dtype are the output's.
cotangents = st.builds(
    Made,
    st.just(()),
    values=st.sampled_from(("normal", "normal", "normal", "extreme")),
    seed=seeds,
    layout=layouts,
)
EXACT = {case.op: case.reference for case in CASES}


def compared(op: str, arguments: dict[str, Any], cotangent: Made) -> tuple[str, Known | None, str]:
    """Return where torch.nn ended, the exception the call falls under, or how ours is unlike."""
    theirs = outcome_of(torch_op(op), arguments, cotangent)
    ours = outcome_of(getattr(functional, op), arguments, cotangent)
    where, how = difference(ours, theirs, Exact(EXACT[op], arguments, cotangent))
    known = known_of(op, where, arguments, ours, theirs) if where else None
    return theirs.stage, known, f"{where}: {how}" if where and not known else ""


@pytest.mark.filterwarnings("ignore")  # of sizes that broadcast and the like: see test_warnings
@pytest.mark.parametrize("op", CALLS)
def test_same_outcome_as_torch(op: str) -> None:
    stages: Counter[str] = Counter()
    given_names: set[str] = set()

    @seed(SEED)
    @SETTINGS
    @given(CALLS[op], cotangents)
    def agrees(arguments: dict[str, Any], cotangent: Made) -> None:
        stage, _known, unlike = compared(op, arguments, cotangent)
        assert not unlike, unlike
        stages[stage] += 1
        given_names.update(arguments)

    agrees()
    assert stages.total() >= EXAMPLES
    # Neither are all calls refused nor is none.
    assert stages["done"] >= EXAMPLES / 5
    assert stages["forward"] >= EXAMPLES / 100
    assert given_names == set(inspect.signature(OPS[op]).parameters)


def test_every_op_is_generated() -> None:
    assert CALLS.keys() == OPS.keys()


def test_exceptions_are_of_ops_there_are() -> None:
    assert {op for known in KNOWN for op in known.ops} <= OPS.keys()
    assert all(known.reason for known in KNOWN)
