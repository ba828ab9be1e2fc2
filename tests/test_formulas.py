"""Formulas of docstrings as MathML, for the pages of docs."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from manual_ops.trace import formulas

ROOT = Path(__file__).parent.parent
OPS = sorted((ROOT / "manual_ops" / "ops").glob("*.py"))

_spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs/hooks/formulas.py")
drawing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(drawing)

GREEK = {"delta": "δ", "pi": "π", "eps": "ε", "inf": ""}
SHAPES = {"mfrac": "{%s}/{%s}", "msub": "%s_{%s}", "msup": "%s^{%s}", "munder": "%s_{%s}"}


def linear(element: ElementTree.Element) -> str:
    """Read a drawn formula aloud: its layout in braces, its letters as they are."""
    parts = [linear(child) + (child.tail or "") for child in element]
    if element.tag in SHAPES:
        return SHAPES[element.tag] % tuple(parts)
    inside = (element.text or "") + "".join(parts)
    return f"√{{{inside}}}" if element.tag == "msqrt" else inside


def drawn(line: str) -> str:
    return linear(ElementTree.fromstring(f"<p>{drawing.display(line).replace('&nbsp;', ' ')}</p>"))


def in_prose(text: str) -> str:
    markup = drawing.inline(text).replace("<math>", "[").replace("</math>", "]")
    return linear(ElementTree.fromstring(f"<p>{markup}</p>"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("y = x W", "y=xW"),
        ("y[*, o] = x[o]^2", "y_{∗,o}=x_{o}^{2}"),
        ("dL/dx[q]", "{∂L}/{∂x_{q}}"),
        ("dy[n, o]/dx'[i]", "{∂y_{n,o}}/{∂x′_{i}}"),
        ("d log s(x)/dx", "{∂logs(x)}/{∂x}"),
        ("sum_{o, k: o in G} W[o]", "∑_{o,k:o∈G}W_{o}"),
        ("delta_ij - p[j]", "δ_{ij}−p_{j}"),
        # products and quotients go from left to right
        ("a b / c", "{ab}/{c}"),
        ("a / b c", "a/bc"),
        ("a / (b + c)", "{a}/{b+c}"),
        ("(a + b) / c / d", "{{a+b}/{c}}/{d}"),
        ("(a + b) (c + d) / e", "{(a+b)(c+d)}/{e}"),
        ("a - b / c", "a−{b}/{c}"),
        ("s (a - b / c)", "s(a−{b}/{c})"),
        ("exp(a) / sum_j exp(b[j])", "{exp(a)}/{∑_{j}exp(b_{j})}"),
        ("sum_k a[k] / b[k] + c", "∑_{k}{a_{k}}/{b_{k}}+c"),
        ("(sum_k a[k]) / b", "{∑_{k}a_{k}}/{b}"),
        ("1 / sqrt(v + eps)", "{1}/{√{v+ε}}"),
        ("(a (b (c + d))) / e", "{a(b(c+d))}/{e}"),
        ("1 / (1 + exp(-x))^2", "{1}/{(1+exp(−x))^{2}}"),
        ("L = l (sum), or 0 if x <= 0 else a", "L=l (sum), or 0 if x≤0 else a"),
        ("x W^T + x W'^T", "xW^{T}+xW′^{T}"),
    ],
)
def test_notation(line: str, expected: str) -> None:
    assert drawn(line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "A query has a sum over rows (1998), 1 of 2.",
            "A query has a sum over rows (1998), 1 of 2.",
        ),
        ("so that y = a x, as x is", "so that [y=ax], as [x] is"),
        ("all processes' losses, torch's too", "all processes' losses, torch's too"),
        ("``eps`` in [0, 1)", "eps in [0, 1)"),
        ("dims (1 without)", "dims (1 without)"),
        ("a slope ``a``, see conv.py", "a slope [a], see conv.py"),
    ],
)
def test_prose(text: str, expected: str) -> None:
    assert in_prose(text) == expected


def test_marked() -> None:
    page = "So _y = w x_, `_not_ = 1`, snake_case_name, log\\_softmax\\_x\n```\n_x = 1_\n```\n"
    found = drawing.marked(page)
    assert re.sub("<[^>]*>", "", found) == page.replace("_y = w x_", "y=wx")
    assert found.count("<math>") == 1


def letters(text: str) -> str:
    """What a formula is made of, without layout."""
    text = re.sub(r"\bd( ?\w+|\(2 u\))(\[[^]]*\])?/d", r"\1\2", text)
    text = re.sub(
        r"(?<![A-Za-z])sum(?=_| [^,)])|(?<![A-Za-z])(sqrt(?=\()|in(?= (?:window|G)))", "", text
    )
    for name, symbol in GREEK.items():
        text = re.sub(rf"(?<![A-Za-z]){name}(?![A-Za-z])", symbol, text)
    return re.sub(r"[\W_]", "", text)


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.stem)
def test_nothing_of_an_op_is_lost(path: Path) -> None:
    docstring = path.read_text().split('"""')[1]
    for text in formulas(docstring).values():
        for line in text.splitlines():
            result = drawn(line)
            assert letters(result) == letters(line)
            assert "dL/" not in result, "a derivative is drawn as a fraction"
            assert "[" not in result, "an index is drawn as such"
