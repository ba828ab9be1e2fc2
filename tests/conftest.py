"""Settings of every test: a fixed seed, one intra-op thread, no graph kept by the compiler."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Tiny tensors: a second thread only costs, and two pytest workers would share two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget compiled code before and after, so that a recompile limit never leaks between tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
