"""Formulas in the notation of the docstrings, as MathML, which browsers draw by themselves.

``dL/dx[n, i] = sum_o dL/dy[n, o] W[o, i]`` becomes a partial derivative with indices, a sum sign
and so on. What belongs together is read as in the docstrings: juxtaposition is a product,
products and quotients go from left to right, ``sum`` reaches to the next plus or minus. Where a
quotient cannot be drawn as a fraction without changing that, its stroke stays.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTIONS = ["exp", "log", "sqrt", "sin", "cos", "tan", "tanh", "sinh", "cosh", "erf", "max", "min"]
FUNCTIONS += [
    "floor",
    "ceil",
    "conj",
    "conv",
    "diag",
    "sigmoid",
    "softmax",
    "relu",
    "window",
    "lse",
]
SYMBOLS = {"delta": "δ", "pi": "π", "eps": "ε", "inf": "∞"}
OPERATORS = {"<=": "≤", ">=": "≥", "->": "→", "+-": "±", "-": "−", "*": "·", "in": "∈"}
NAMES = ["Wq", "bq", "Wo", "bo", "query", "hd", "pn", "dL", "dl", "dy", "dx"]
CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}

_NAME = rf"(?:(?:{'|'.join([*FUNCTIONS, *SYMBOLS, *NAMES])})(?![a-z])|[A-Za-z](?![A-Za-z]))"
_DERIVATIVE = r"d(?:[A-Za-z]|lse| lse| log s\(x\)|\(2 u\))"
_TOKEN = re.compile(
    rf"(?P<derivative>(?P<over>{_DERIVATIVE})(?P<index>\[[^]]*\])?/d(?P<under>[A-Za-z])(?![A-Za-z]))"
    r"|(?P<sum>sum(?:_(?:\{[^}]*\}|\*|[A-Za-z]+)|(?=\s+[^\s,)])))"
    r"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?(?![\w-]))"
    rf"|(?P<name>{_NAME}(?:_(?:[A-Za-z]+|\d))?)(?![\w-]*[A-Za-z_]|'s\b|\.py\b)"
    r"|(?P<choice>(?:if|else|in(?=\s+(?:[A-Z](?![a-z])|\w+\()))(?![A-Za-z]))"
    r"|(?P<operator>\+=|<=|>=|->|[-+*/=<>|])"
    r"|(?P<bracket>[][(){}])"
    r"|(?P<word>``[^`]*``|[\w-]+(?:\.\w+)*(?:'s\b)?|.)"
)


@dataclass(frozen=True)
class Piece:
    """A part of a line: as it was written, as MathML, and what kind of part it is.

    ``kind`` is "factor" (what juxtaposition multiplies), "sum", "operator", "number", "name" (also
    factors), "space" or "word".
    """

    kind: str
    source: str
    markup: str


KINDS = ("derivative", "sum", "number", "name", "choice", "operator", "bracket", "word")
FACTORS = {"factor", "number", "name", "sum"}


def display(line: str) -> str:
    """Return a line of formulas as HTML, with whatever words stand between them."""
    return "".join(_mixed(line, "math", least=1))


def inline(text: str) -> str:
    """Return prose as HTML, with the formulas in it drawn as such.

    A formula is what has an operator, an index or a function in it, or a letter by itself that is
    no English word.
    """
    return "".join(_mixed(text, "math", least=2))


def marked(page: str) -> str:
    """Return Markdown with the formulas that stand between underscores drawn."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", page, flags=re.DOTALL)
    parts[::2] = [
        re.sub(
            r"(?<![\w\\])_(?=\S)([^_\n]+)(?<=\S)_(?!\w)",
            # In a span, as Markdown ends a paragraph at a line that begins with any other element.
            lambda found: f"<span><math>{mathml(found[1])}</math></span>",
            prose,
        )
        for prose in parts[::2]
    ]
    return "".join(parts)


def mathml(formula: str) -> str:
    """Return the MathML of a formula without words, without the element ``math`` around it."""
    return _row([piece for piece in _pieces(formula, words=True) if piece.kind != "space"])


def _mixed(text: str, element: str, least: int) -> Iterator[str]:
    """Cut ``text`` into words and formulas."""
    run: list[Piece] = []
    for piece in [*_pieces(text, words=least == 1), Piece("word", "", "")]:
        if piece.kind != "word":
            run.append(piece)
            continue
        yield from _formula(run, element, least)
        run = []
        yield piece.markup


def _formula(run: list[Piece], element: str, least: int) -> Iterator[str]:
    source = "".join(piece.source for piece in run)
    parts = [piece for piece in run if piece.kind != "space"]
    plain = least > 1 and all(_may_be_prose(piece) for piece in parts)
    if not parts or plain:
        yield html.escape(source, quote=False)
        return
    before = source[: len(source) - len(source.lstrip())]
    after = source[len(source.rstrip()) :]
    style = ' displaystyle="true"' if least == 1 else ""
    yield f"{before}<{element}{style}>{_row(parts)}</{element}>{after}"


def _may_be_prose(piece: Piece) -> bool:
    """Whether a piece can be English: "sum", "the query", "A ...", "(1998)", "-100"."""
    long = len(piece.source) > 1 and piece.source.isalpha()
    number = re.fullmatch(r"\(?[\d.]*\)?|-", piece.source)
    return long or bool(number) or piece.source in ("a", "A", "I")


def _pieces(text: str, words: bool) -> list[Piece]:
    text = re.sub(r"\bsqrt (\w+)", r"sqrt(\1)", text)
    pieces: list[Piece] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            end = at + len(text[at:]) - len(text[at:].lstrip())
            pieces.append(Piece("space", text[at:end], ""))
            at = end
            continue
        at = _next(text, at, words, pieces)
    return pieces


def _next(text: str, at: int, words: bool, pieces: list[Piece]) -> int:
    """Append the piece that starts at ``at``; return where the next one does."""
    found = _TOKEN.match(text, at)
    assert found
    token, end = found[0], found.end()
    kind = next(k for k in KINDS if found[k])
    if found["derivative"]:
        below = [Piece("name", found["under"], _name(found["under"]))]
        end = _attach(text, end, below)
        over = mathml(found["over"][1:] + (found["index"] or ""))
        markup = (
            f"<mfrac><mrow><mi>∂</mi>{over}</mrow><mrow><mi>∂</mi>{below[0].markup}</mrow></mfrac>"
        )
        pieces.append(Piece("factor", text[at:end], markup))
        return end
    if kind in ("sum", "number", "name"):
        markup = {"sum": _sum, "number": _number, "name": _name}[kind](token)
        pieces.append(Piece(kind, token, markup))
        return _attach(text, end, pieces) if kind == "name" else end
    if token in CLOSING and token != "{":
        return _group(text, at, words, pieces)
    if kind == "operator":
        pieces.append(Piece("operator", token, _operator(token)))
    elif kind == "choice" and words:
        markup = f"<mtext>&nbsp;{token}&nbsp;</mtext>" if token != "in" else _operator(token)
        pieces.append(Piece("operator", token, markup))
    else:
        pieces.append(Piece("word", token, _word(token)))
    return end


def _group(text: str, at: int, words: bool, pieces: list[Piece]) -> int:
    """Append a bracket: one factor if there is nothing but a formula in it, words otherwise."""
    end = _closing(text, at)
    inner = _pieces(text[at + 1 : end], words=True) if end > 0 else []
    if end < 0 or any(piece.kind == "word" and piece.source not in ",:" for piece in inner):
        pieces.append(Piece("word", text[at], text[at]))
        return at + 1
    markup = _fenced(text[at], _row(inner), text[end])
    pieces.append(Piece("factor", text[at : end + 1], markup))
    return _attach(text, end + 1, pieces)


def _closing(text: str, at: int) -> int:
    """Return where the bracket that opens at ``at`` is closed, or -1."""
    if text[at] == "|":
        return text.find("|", at + 1)
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == text[at]) - (text[i] == CLOSING[text[at]])
        if not depth:
            return i
    return -1


def _attach(text: str, at: int, pieces: list[Piece]) -> int:
    """Add to the last piece the primes, exponents, indices and arguments that touch it."""
    while at < len(text):
        base = pieces[-1]
        if text[at] == "'":
            end, markup = at + 1, f'<mrow>{base.markup}<mo lspace="0" rspace="0">′</mo></mrow>'
        elif text[at] == "^":
            power: list[Piece] = []
            end = _next(text, at + 1, True, power) if text[at + 1] == "(" else at + 2
            exponent = power[0].markup if power else _name(text[at + 1])
            markup = f"<msup>{base.markup}{exponent}</msup>"
        elif text[at] == "[":
            end = _closing(text, at) + 1
            markup = f"<msub>{base.markup}{mathml(text[at + 1 : end - 1])}</msub>"
        elif text[at] == "(" and base.kind == "name":
            argument: list[Piece] = []
            end = _group(text, at, True, argument)
            if argument[0].kind == "word":
                return at
            root = base.source == "sqrt"
            inside = mathml(text[at + 1 : end - 1])
            markup = f"<msqrt>{inside}</msqrt>" if root else f"{base.markup}{argument[0].markup}"
            markup = f"<mrow>{markup}</mrow>"
        else:
            break
        pieces[-1] = Piece("factor", base.source + text[at:end], markup)
        at = end
    return at


def _row(pieces: list[Piece]) -> str:
    """Return the MathML of pieces side by side, quotients as fractions."""
    row: list[Piece] = []
    rest = [piece for piece in pieces if piece.kind != "space"]
    while rest:
        piece = rest.pop(0)
        below = _divisor(rest) if piece.source == "/" else []
        start = len(row)
        while start and row[start - 1].kind in FACTORS - {"sum"}:  # what is summed is divided
            start -= 1
        if below and start < len(row):
            fraction = f"<mfrac>{_bare(row[start:])}{_bare(below)}</mfrac>"
            row[start:] = [Piece("factor", "", fraction)]
            del rest[: len(below)]
        elif piece.source == "*" and not (row and row[-1].kind in FACTORS):  # an index for all
            row.append(Piece("factor", "*", "<mo>∗</mo>"))
        elif piece.source == "-" and not (row and row[-1].kind in FACTORS):  # a sign
            row.append(Piece("operator", "-", '<mo form="prefix">−</mo>'))
        elif piece.kind == "word":
            tag = "mo" if piece.source in ",:;" else "mtext"
            row.append(Piece("word", piece.source, f"<{tag}>{piece.markup}</{tag}>"))
        else:
            row.append(piece)
    return f"<mrow>{''.join(piece.markup for piece in _spaced(row))}</mrow>"


def _divisor(rest: list[Piece]) -> list[Piece]:
    """Return what a stroke divides by, if it can stand below a bar: one factor, or a sum."""
    factors = next((i for i, p in enumerate(rest) if p.kind not in FACTORS), len(rest))
    if factors and rest[0].kind == "sum":
        return rest[:factors]
    return rest[:1] if factors == 1 else []


def _bare(pieces: list[Piece]) -> str:
    """Return the MathML of what stands above or below a bar, without needless brackets."""
    source = pieces[0].source
    if len(pieces) == 1 and source[:1] == "(" and _closing(source, 0) == len(source) - 1:
        return mathml(source[1:-1])
    return f"<mrow>{''.join(piece.markup for piece in _spaced(pieces))}</mrow>"


def _spaced(row: list[Piece]) -> Iterator[Piece]:
    """Put a thin space where factors meet."""
    for left, right in zip([None, *row], row, strict=False):
        if left and left.kind in FACTORS and right.kind in FACTORS:
            yield Piece("space", " ", '<mspace width="0.17em"/>')
        yield right


def _fenced(left: str, inner: str, right: str) -> str:
    grows = str("<mfrac>" in inner).lower()
    edge = '<mo stretchy="{}">{}</mo>'
    return f"<mrow>{edge.format(grows, left)}{inner}{edge.format(grows, right)}</mrow>"


def _sum(token: str) -> str:
    _, _, index = token.partition("_")
    sign = '<mo largeop="true" movablelimits="false">∑</mo>'
    if not index:
        return sign
    index = index.strip("{}")
    below = _letters(index) if index.isalpha() else mathml(index)
    return f"<munder>{sign}{below}</munder>"


def _number(token: str) -> str:
    return f"<mn>{token}</mn>"


def _name(token: str) -> str:
    name, _, index = token.partition("_")
    symbol = SYMBOLS.get(name, name)
    markup = f"<mi>{symbol}</mi>"
    if index:
        markup = f"<msub>{markup}{_letters(index)}</msub>"
    return markup


def _letters(indices: str) -> str:
    return f"<mrow>{''.join(f'<mi>{letter}</mi>' for letter in indices)}</mrow>"


def _operator(token: str) -> str:
    return f"<mo>{html.escape(OPERATORS.get(token, token))}</mo>"


def _word(token: str) -> str:
    if token.startswith("``"):
        name = token.strip("`")
        letter = len(name) == 1  # one that may be an English word
        return f"<math>{_name(name)}</math>" if letter else f"<code>{html.escape(name)}</code>"
    return html.escape(token, quote=False)
