"""The pages of functions and modules, which docs/hooks makes of docstrings."""

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manual_ops
from manual_ops import functional, nn
from manual_ops.testing import assert_op_ok

ROOT = Path(__file__).parent.parent
OPS = {path.stem for path in (ROOT / "manual_ops/ops").glob("[!_]*.py")}

_spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs/hooks/api_pages.py")
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

FUNCTIONS, MODULES = pages.functions_page(), pages.modules_page()
CHECK = sys.modules["manual_ops.check"]  # as an attribute it is the function
LAYERS = {
    name: layer
    for name, layer in vars(nn).items()
    if inspect.isclass(layer) and layer.__module__.startswith("manual_ops.")
}


def public(module: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def entries(page: str) -> dict[str, str]:
    """What a page says below each heading that has an anchor, by the last part of the anchor."""
    _, *parts = re.split(r"^### \w+ \{#[\w.]+?(\w+)\}$", page, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def parameters(entry: str) -> list[str]:
    """The names of the parameters that an entry shows."""
    head = re.search("```python\n(.*?)\n```", entry, re.DOTALL)[1].replace("class ", "def ")
    args = ast.parse(f"{head if '(' in head else head + '()'}: ...").body[0].args
    stars = [star for star in (args.vararg, args.kwarg) if star]
    return sorted(arg.arg for arg in args.args + args.kwonlyargs + stars)


def test_every_function_is_on_the_page() -> None:
    found = entries(FUNCTIONS)
    assert {*public(manual_ops), *public(CHECK), "assert_op_ok"} <= found.keys()
    # what these return, too
    assert {"Conversion", "Report", "Layer", "Comparison", "Trace", "Step"} <= found.keys()
    assert len(re.findall("^### ", FUNCTIONS, re.MULTILINE)) == len(
        set(re.findall(r"\{#(.*)\}", FUNCTIONS))
    )
    for name, op in public(functional).items():
        if inspect.isfunction(op):
            assert f"[`{name}`](../ops/" in FUNCTIONS, name


def test_every_layer_is_on_the_page() -> None:
    assert {*nn.__all__, *LAYERS} == entries(MODULES).keys()


def test_links_lead_to_ops() -> None:
    for name, entry in entries(MODULES).items():
        links = re.findall(r"\.\./ops/(\w+)\.md", entry.partition("\n\nOp: ")[2])
        assert links, name
        assert set(links) <= OPS, name
    assert set(re.findall(r"\.\./ops/(\w+)\.md", FUNCTIONS)) <= OPS


@pytest.mark.parametrize(
    ("name", "value"), [*public(manual_ops).items(), ("assert_op_ok", assert_op_ok)]
)
def test_signatures_of_functions(name: str, value: Callable[..., Any]) -> None:
    assert parameters(entries(FUNCTIONS)[name]) == sorted(inspect.signature(value).parameters)


@pytest.mark.parametrize("name", LAYERS)
def test_signatures_of_layers(name: str) -> None:
    expected = {*inspect.signature(LAYERS[name]).parameters}
    if expected == {"args", "kwargs"}:  # handed on to Conv2d, or nn.Module's
        expected = {*inspect.signature(nn.Conv2d).parameters} if name == "Conv2dReLU" else set()
    assert parameters(entries(MODULES)[name]) == sorted(expected)


def test_docstrings_become_markdown() -> None:
    function = ast.parse(
        '''
def f(a: dict[str, int | None] = {}, *rest: Callable[[int, int], str], b=(1, 2)) -> None:
    """Do as :func:`torch.f` does to ``a``
    and ``b``.

        f(1)

    Args:
        a: The first,
            on two lines.
        *rest: Others: more.

    Returns:
        Nothing
        at all.

    Example:
        >>> f(2)
    """
'''
    ).body[0]
    assert (
        pages.described(function)
        == """\
```python
def f(
    a: dict[str, int | None] = {},
    *rest: Callable[[int, int], str],
    b=(1, 2),
) -> None
```

Do as `torch.f` does to `a` and `b`.

```python
f(1)
```

**Args**

- `a`: The first, on two lines.
- `*rest`: Others: more.

**Returns** Nothing at all.

**Example**

```pycon
>>> f(2)
```"""
    )


@pytest.mark.parametrize("page", [FUNCTIONS, MODULES], ids=["functions", "modules"])
def test_no_markup_of_docstrings_is_left(page: str) -> None:
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    assert "``" not in prose
    assert not re.search(r":\w+:`|^(Args|Returns|Raises|Attributes):", prose, re.MULTILINE)
