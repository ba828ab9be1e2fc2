"""Settings of every test: a fixed seed, one intra-op thread, no graph kept by the compiler."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Tiny tensors: a second thread only costs, and two pytest workers would share two cores.
torch.set_num_threads(1)
# Float32 is compared as float32 on every device.
torch.backends.cudnn.allow_tf32 = False


# Warnings are errors, but for what PyTorch says about itself and no caller can mend.
TORCH_WARNINGS = (
    # torch.func and forward mode script torch's own decompositions when they are first used.
    r"ignore:`torch\.jit\.script` is deprecated",
    # Dynamo of torch 2.13 and before says it of torch.autograd.Function itself.
    r"ignore:<class 'torch\.autograd\.function\.Function'> should not be instantiated",
    # Emitted once per process, hence by an arbitrary test: torch.nn says it for the same call.
    r"ignore:Using padding='same' with even kernel lengths",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in TORCH_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget compiled code before and after, so that recompile limits do not add up over tests."""
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
