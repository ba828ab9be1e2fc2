"""MkDocs hook: pages that are made, not written, and formulas in every page.

Made are the first page (the README) and the likes of it, a page for each op and those of the API.
The page of an op is put together from its file in ``manual_ops/ops`` (the derivation is its
docstring), its row of ``docs/conformance.md`` and its rows of ``docs/benchmarks_ops.json``. Nothing
of it is checked in, and nothing is imported: the files are read.
"""

import ast
import html
import json
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from api_pages import described, functions_page, modules_page, pages_of_ops
from formulas import display, inline, marked

ROOT = Path(__file__).parents[2]
OPS = {path.stem: path for path in sorted((ROOT / "manual_ops/ops").glob("[!_]*.py"))}
LABEL = re.compile(r"([A-Z][a-z]+):( +)(?=\S)")
FORMULAS = re.compile(r"^```formula\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^<!-- (\w+\.py) -->\n```python\n", re.MULTILINE)
COSTS = re.compile(r"^<!-- (benchmarks_\w+\.json) -->$", re.MULTILINE)
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LABELS = {"Forward", "Jacobian", "Training", "Evaluation", "Backward", "Tangent"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the ops to the navigation, before API."""
    assert config.nav
    at = next(i for i, item in enumerate(config.nav) if "API" in item)
    config.nav.insert(at, {"Ops": [{name: f"ops/{name}.md"} for name in OPS]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {f"ops/{name}.md": op_page(path) for name, path in OPS.items()}
    made |= {"api/functions.md": functions_page(), "api/modules.md": modules_page()}
    for source, page in COPIED.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        for name, other in COPIED.items():
            text = text.replace(f"]({name})", f"]({other})")
        made[page] = re.sub(r"\[([^]]*)\]\(LICENSE\)", r"\1", text)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw ``formula`` blocks, name the files that blocks of code stand for, put benchmarks in."""
    markdown = COSTS.sub(lambda found: costs(found[1]), marked(markdown))
    markdown = FORMULAS.sub(lambda found: formulas(found[1]), markdown)
    return FILE.sub(r'```python title="\1"\n', markdown)


def op_page(path: Path) -> str:
    """Return the page of one op as Markdown."""
    source = path.read_text()
    module = ast.parse(source)
    docstring = ast.get_docstring(module)
    assert docstring
    names = {name for name, page in pages_of_ops().items() if page == path.stem}
    first, _, derivation = docstring.partition("\n")
    code = source[source.index('"""', 3) + 3 :].strip()
    parts = [
        f"# {path.stem}\n\n<p>{inline(first)}</p>",
        f"## Derivation\n\n{derivation_html(derivation)}",
        shared_derivations(derivation),
        *(
            f"## {node.name}\n\n{described(node)}"
            for node in module.body
            if isinstance(node, ast.FunctionDef) and node.name in names
        ),
        table_of_conformance(names),
        table_of_costs(names),
        f'## Code\n\n```python title="manual_ops/ops/{path.name}"\n{code}\n```\n',
    ]
    return "\n\n".join(part for part in parts if part)


def derivation_html(text: str) -> str:
    """Return a derivation as Markdown: formulas where lines are labelled or indented, and prose."""
    parts = []
    for kind, group in groupby(text.splitlines(), kind_of_line):
        lines = list(group)
        if kind == "formula":
            parts.append(formulas("\n".join(lines)))
        elif kind == "table":
            parts.append("\n".join(["```text", *lines, "```"]))
        elif kind == "prose":
            parts.append(paragraph(" ".join(lines)))
    return "\n\n".join(parts)


def kind_of_line(line: str) -> str:
    """Return what a line of a derivation is, by its label or indent."""
    label = LABEL.match(line)
    if line.startswith(" " * 5) or (label and label[1] in LABELS):
        return "formula"
    return "table" if line.startswith(" " * 4) else "prose" if line else "empty"


def shared_derivations(text: str) -> str:
    """Return the derivations that an op's one refers to, of files that are no op."""
    parts = []
    for name in dict.fromkeys(re.findall(r"\b(_\w+)\.py", text)):
        docstring = ast.get_docstring(ast.parse((ROOT / f"manual_ops/ops/{name}.py").read_text()))
        assert docstring
        parts.append(f"### {name}.py\n\n{derivation_html(docstring)}")
    return "\n\n".join(parts)


def formulas(block: str) -> str:
    """Return lines of formulas as HTML, with their labels beside them."""
    rows = []
    for line in block.rstrip().splitlines():
        found = LABEL.match(line)
        label, formula = (found[1], line[found.end() :]) if found else ("", line.strip())
        pieces = re.split(r"(?<=\S) {2,}(?![=+])", re.sub(r" {2,}(?==)", " ", formula))
        drawn = "".join(f"<span>{linked(display(piece))}</span>" for piece in pieces)
        rows.append(f"<dt>{label}</dt><dd>{drawn}</dd>")
    return f'<dl class="formulas">{"".join(rows)}</dl>\n'


def paragraph(text: str) -> str:
    """Return prose as HTML, formulas in it drawn, files of ops linked, the source set apart."""
    prose, mark, source = text.partition("Source: ")
    drawn = linked(inline(prose))
    reference = f'<p class="source">Source: {html.escape(source)}</p>' if mark else ""
    return (f"<p>{drawn}</p>" if drawn.strip() else "") + reference


def linked(drawn: str) -> str:
    """Link the files of ops to their pages."""
    return re.sub(
        r"(?<![\w/])(\w+)\.py",
        lambda m: f'<a href="../{m[1]}/">{m[1]}</a>' if m[1] in OPS else m[0],
        drawn,
    )


def table_of_conformance(names: set[str]) -> str:
    """Return the op's rows of the table of conformance, as columns."""
    page = (ROOT / "docs/conformance.md").read_text().partition("\n## Saved bytes")[0]
    checks: list[str] = []
    found: dict[str, list[str]] = {}
    for line in page.splitlines():  # a table for each group of checks
        op, *cells = re.split(r" *\| *", line.strip("| ")) if line.startswith("|") else ("",)
        if op == "op":
            checks += cells
        elif op.strip("`") in names:
            found.setdefault(op.strip("`"), []).extend(cells)
    if not found:
        return ""
    title = "".join(f" {name}: ours, torch.nn |" for name in found)
    table = [f"| check |{title}", "|---" * (1 + len(found)) + "|"]
    table += [f"| {' | '.join(cells)} |" for cells in zip(checks, *found.values(), strict=True)]
    return "## Conformance\n\nFrom [the table of all ops](../conformance.md).\n\n" + "\n".join(
        table
    )


def table_of_costs(names: set[str]) -> str:
    """Return the op's rows of the benchmark as a table."""
    table = costs("benchmarks_ops.json", lambda row: row.partition(" ")[0] in names)
    return table and f"## Cost\n\n{table}"


def costs(file: str, wanted: Callable[[str], bool] = lambda _: True) -> str:
    """Return the rows of a benchmark whose names are wanted, and by what they were measured."""
    measured = json.loads((ROOT / "docs" / file).read_text())
    tables = measured["tables"]
    cells = [
        (
            row["name"] if len(tables) == 1 else f"{row['name']}, {size}",
            *(f"{row['times'][s] * 1e3:.3f}" for s in ("ours", "torch")),
            "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**row["times"]),
            " / ".join(f"{row[side] / 1e6:.3g}" for side in ("saved", "torch_saved")),
        )
        for size, rows in tables.items()
        for row in rows
        if wanted(row["name"])
    ]
    if not cells:
        return ""
    heads = ("", "ours, ms", "torch.nn, ms", "ratio (quartiles)", "saved MB, ours / torch.nn")
    lines = (heads, ("---", *("---:" for _ in heads[1:])), *cells)
    origin = (
        f"Forward and backward, medians, by `{measured['command']}`; both sides alternate, "
        f"{measured['threads']} threads, {measured['machine']}, torch {measured['torch']}."
    )
    return f"{origin}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
