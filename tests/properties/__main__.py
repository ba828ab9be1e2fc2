"""Search further than the tests do: other calls, and exceptions that are not needed.

``python -m tests.properties --seeds 1 2 3 --ops linear conv2d``
"""

import argparse
import warnings
from collections import Counter
from typing import Any

from hypothesis import Phase, given, seed, settings

from tests.properties.calls import CALLS
from tests.properties.exceptions import KNOWN
from tests.properties.tensors import Made
from tests.properties.test_generated import EXAMPLES, SETTINGS, compared, cotangents


def main() -> None:
    """Print what is unlike torch.nn without a reason, and the reasons that no call needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ops", nargs="+", choices=sorted(CALLS), default=sorted(CALLS))
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of each op and seed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    needed: Counter[str] = Counter()
    for op in options.ops:
        found: dict[str, str] = {}
        for number in options.seeds:
            _search(op, number, options.examples, found, needed)
        print(f"{op}: {len(found)} unlike torch.nn", flush=True)
        for call in found.values():
            print(f"  {call}", flush=True)
    print("exceptions that no call needed:")
    for known in KNOWN:
        searched = not known.ops or set(known.ops) & set(options.ops)
        if searched and not needed[known.reason]:
            print(f"  {', '.join(known.ops)}: {known.where}: {known.reason}")


def _search(
    op: str, number: int, examples: int, found: dict[str, str], needed: Counter[str]
) -> None:
    """Add to ``found`` one call for each kind of difference."""

    @seed(number)
    @settings(SETTINGS, max_examples=examples, phases=[Phase.generate])
    @given(CALLS[op], cotangents)
    def look(arguments: dict[str, Any], cotangent: Made) -> None:
        _stage, known, unlike = compared(op, arguments, cotangent)
        if known:
            needed[known.reason] += 1
        if unlike:
            found.setdefault(unlike[:60], f"{unlike}\n    {arguments}, {cotangent}")

    look()


if __name__ == "__main__":
    main()
