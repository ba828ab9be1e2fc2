"""For tests of ops, in any project: one assertion that runs every check."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manual_ops.check import CheckError, Report, check
from manual_ops.check.run import Checkable, select


def assert_op_ok(
    fn: Checkable,
    *inputs: Any,
    reference: Checkable | None = None,
    keywords: Mapping[str, Any] | None = None,
    require: Sequence[str] = (),
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    mutates: Sequence[str] = (),
    seed: int = 0,
    backend: str | Callable[..., Any] = "aot_eager",
) -> Report:
    """Check an op, and raise the report if it fails.

        def test_my_op():
            assert_op_ok(MyFunction, torch.randn(3, 4), require=["double backward", "vmap"])

    Args:
        fn: An ``autograd.Function``, a callable or a module.
        *inputs: Its inputs, see ``manual_ops.check``.
        reference: Another implementation, to compare values and gradients with.
        keywords: Keyword inputs.
        require: Names of checks that have to apply: "n/a" is a failure as well.
        only: Names of the checks to run; by default all.
        skip: Names of checks to leave out.
        mutates: Names of tensors that ``fn`` is meant to update in place.
        seed: Of the random numbers that ``fn`` draws.
        backend: Of torch.compile.

    Returns:
        The report, if nothing failed.

    Raises:
        CheckError: A check failed, or one of ``require`` does not apply; the message is the table.
        TypeError: ``fn`` is none of these, or nothing can be differentiated.
        ValueError: A name is not known, or a required check is not among those to run.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    chosen = {one.name for one in select(only, skip)}
    left_out = [one.name for one in select(require) if one.name not in chosen]
    if left_out:
        raise ValueError(f"require names {left_out}, which only and skip leave out")
    report = check(
        fn,
        *inputs,
        reference=reference,
        keywords=keywords,
        only=only,
        skip=skip,
        mutates=mutates,
        seed=seed,
        backend=backend,
    )
    report.raise_if_failed()
    missing = [name for name in require if all(row.verdict == "n/a" for row in report[name])]
    if missing:
        raise CheckError(f"required but not applicable: {', '.join(missing)}\n\n{report}")
    return report
