"""Threads that run forward and backward at once, and processes that were forked or spawned."""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from manual_ops.testing.cases import CASES, OpCase
from tests.harness import on_differentiable, random_like, subject

DETERMINISTIC = [case for case in CASES if not case.random]  # threads share one generator
WORKERS = 4
Numbers = list[list[list[float]]]  # of every case's tensors


def results(case: OpCase, seed: int) -> list[Tensor]:
    """Output and gradients of one case."""
    function, tensors = on_differentiable(case, subject(case), case.sample(seed=seed))
    output = function(*tensors)
    found = torch.autograd.grad(output, tensors, random_like(output, seed))
    return [output.detach(), *found]


def all_results(seed: int) -> Numbers:
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


def pool(method: str, workers: int) -> ProcessPoolExecutor:
    """Processes that were forked or spawned."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))


def here_and_in_two_processes(method: str) -> tuple[list[Numbers], list[Numbers]]:
    """All results of two seeds, in this process, and then in two that it starts."""
    with pool(method, 2) as processes, warnings.catch_warnings():
        # From Python 3.12 on, fork warns where there are threads.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        here = [all_results(seed) for seed in (0, 1)]
        return here, list(processes.map(all_results, (0, 1), timeout=120))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(method: str) -> None:
    """Two processes give what the one that starts them gives, after it has run backward itself.

    A new process starts them: one whose first backward comes after something was compiled cannot
    fork on a machine without a GPU, as PyTorch's engine has then started a thread for one.
    """
    with pool("spawn", 1) as process:
        here, there = process.submit(here_and_in_two_processes, method).result(timeout=300)
    assert there == here
