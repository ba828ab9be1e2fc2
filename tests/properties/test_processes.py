"""Threads that run forward and backward at once, and processes that were forked or spawned."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from manual_ops.testing.cases import CASES, OpCase
from tests.harness import on_differentiable, random_like, subject

DETERMINISTIC = [case for case in CASES if not case.random]  # threads share one generator
WORKERS = 4


def results(case: OpCase, seed: int) -> list[Tensor]:
    """Output and gradients of one case."""
    function, tensors = on_differentiable(case, subject(case), case.sample(seed=seed))
    output = function(*tensors)
    found = torch.autograd.grad(output, tensors, random_like(output, seed))
    return [output.detach(), *found]


def all_results(seed: int) -> list[list[list[float]]]:
    """Those of all cases, as numbers that any process can be sent."""
    torch.set_num_threads(1)
    return [[t.flatten().tolist() for t in results(case, seed)] for case in DETERMINISTIC]


def second_order(case: OpCase, seed: int) -> list[Tensor]:
    """Gradients of the gradients' squares."""
    function, tensors = on_differentiable(case, subject(case), case.sample(seed=seed))
    output = function(*tensors)
    once = torch.autograd.grad(output, tensors, random_like(output, seed), create_graph=True)
    total = sum(gradient.square().sum() for gradient in once if gradient.requires_grad)
    if not isinstance(total, Tensor):
        return []
    twice = torch.autograd.grad(total, tensors, allow_unused=True)
    return [gradient for gradient in twice if gradient is not None]


@pytest.mark.parametrize("run", [results, second_order])
def test_threads(run: object) -> None:
    """Every case, four times at once among all the others: bit for bit what one thread gives."""
    jobs = [(case, seed) for seed in range(WORKERS) for case in DETERMINISTIC]
    expected = [run(*job) for job in jobs]  # type: ignore[operator]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda job: run(*job), jobs))  # type: ignore[operator]
    for job, ours, theirs in zip(jobs, found, expected, strict=True):
        assert len(ours) == len(theirs)
        assert all(map(torch.equal, ours, theirs)), job[0].id


def test_threads_keep_grad_mode_and_autocast_apart() -> None:
    """One thread without gradients, one under autocast, two plain ones."""
    case = next(case for case in CASES if case.id == "linear-sequence")

    def plain(_: int) -> Tensor:
        return subject(case)(**case.sample(torch.float32))

    def lower(_: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(0)

    def without(_: int) -> Tensor:
        with torch.no_grad():
            function, tensors = on_differentiable(case, subject(case), case.sample())
            return function(*tensors)

    def differentiated(_: int) -> Tensor:
        function, tensors = on_differentiable(case, subject(case), case.sample())
        return function(*tensors)

    with ThreadPoolExecutor(WORKERS) as pool:
        calls = [plain, lower, without, differentiated] * 50
        outputs = list(pool.map(lambda call: call(0), calls))
    for call, output in zip(calls, outputs, strict=True):
        assert (
            output.dtype
            == {
                plain: torch.float32,
                lower: torch.bfloat16,
                without: torch.float64,
                differentiated: torch.float64,
            }[call]
        )
        assert output.requires_grad == (call is differentiated)


# From Python 3.12 on, fork warns where there are threads.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(method: str) -> None:
    """Two processes give what this one gives, after it has run backward itself."""
    expected = [all_results(seed) for seed in (0, 1)]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(all_results, (0, 1), timeout=120))
    assert found == expected
