"""The pages of functions and of modules: signatures, and docstrings as Markdown.

Files are read, not imported; torch's too, as layers take what their twins take.
"""

import ast
import re
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^([A-Z][a-z]+):\n(?= {4})", re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4,}\S.*(?:\n+|\Z))+", re.MULTILINE)
COMMA = re.compile(r", (?=\*|\w+(?:[:=,]|$))(?![^[(]*[])])")  # between arguments, not in brackets

Definition = ast.FunctionDef | ast.ClassDef | ast.AnnAssign


def functions_page() -> str:
    """Return the page of what is neither op nor layer, and of the classes of what it returns."""
    parts: dict[tuple[Path, str], str] = {}  # by file and name, as two packages may export one
    for package in ("manual_ops", "manual_ops.check", "manual_ops.testing"):
        path = ROOT / package.replace(".", "/") / "__init__.py"
        parts[path, ""] = f"## {package}\n\n{docstring(parsed(path))}"
        for name, (file, node) in sorted(exports(path).items()):
            parts.setdefault((file, name), entry(f"{package}.{name}", node))
            for record in records(file) if isinstance(node, ast.FunctionDef) else ():
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                parts.setdefault((file, record.name), entry(f"{module}.{record.name}", record))
    ops = ", ".join(f"[`{name}`](../ops/{page}.md)" for name, page in pages_of_ops().items())
    return "\n\n".join(["# Functions", *parts.values(), f"## manual_ops.functional\n\n{ops}"])


def modules_page() -> str:
    """Return the page of the layers, by files."""
    package = ROOT / "manual_ops/nn/__init__.py"
    parts = [f"# Modules\n\n{docstring(parsed(package))}"]
    layers = sorted(exports(package).items(), key=lambda layer: layer[1][0])
    for file, group in groupby(layers, key=lambda layer: layer[1][0]):
        parts.append(f"## {re.split('[.;]$|;', docstring(parsed(file)))[0]}")
        for name, (_, node) in group:
            links = ", ".join(f"[{page}](../ops/{page}.md)" for page in ops_used(file, node))
            parts.append(f"{entry(f'manual_ops.nn.{name}', node)}\n\nOp: {links}")
    return "\n\n".join(parts)


def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text())


def exports(package: Path) -> dict[str, tuple[Path, Definition]]:
    """Return what a package defines or imports by ``x as x``: the file and the definition."""
    names = []
    for node in ast.walk(parsed(package)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("torch"):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names.append(node.name)
    return {name: definition(package, name) for name in names}


def definition(file: Path, name: str) -> tuple[Path, Definition]:
    """Follow a name from a file that has it to the file that defines it."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return file, node
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and name in [a.asname or a.name for a in node.names]:
            base = file.parents[node.level - 1] if node.level else ROOT
            target = base.joinpath(*(node.module or "").split("."))
            source = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
            return definition(source, name)
    raise LookupError(f"{file} has no {name}")


def records(file: Path) -> list[ast.ClassDef]:
    """Return the public classes of a file, that of the whole before those of its parts."""
    classes = [node for node in parsed(file).body if isinstance(node, ast.ClassDef)]
    return [node for node in reversed(classes) if not node.name.startswith("_")]


def pages_of_ops() -> dict[str, str]:
    """Return the functions of ``manual_ops.functional``, each with the name of its page."""
    code = (ROOT / "manual_ops/functional.py").read_text()
    found = re.findall(r"^from \.ops\.(\w+) import \(?\s*(\w+) as", code, re.MULTILINE)
    return {name: page for page, name in found}


def ops_used(file: Path, layer: Definition) -> list[str]:
    """Return the pages of the ops that a layer calls, or its base or a helper in its file."""
    code = ast.unparse(layer)
    for node in parsed(file).body:
        if re.search(rf"\b{getattr(node, 'name', '$')}\b", code):
            code += ast.unparse(node)
    pages = pages_of_ops() | {"sync_batch_norm": "sync_batch_norm"}  # which functional has not
    called = re.findall(r"\b(?:F\.(?=\w)|(?=sync_))(\w+)\(", code)
    return list(dict.fromkeys(pages[name] for name in called))


def entry(anchor: str, node: Definition) -> str:
    """Return what a page says of a definition, under a heading."""
    return f"### {anchor.rpartition('.')[2]} {{#{anchor}}}\n\n{described(node)}"


def described(node: Definition) -> str:
    """Return a definition as Markdown: signature, docstring, methods of a class."""
    parts = [f"```python\n{signature(node)}\n```"]
    if isinstance(node, ast.AnnAssign):  # a table: its keys
        keys = next(part.keys for part in ast.walk(node) if isinstance(part, ast.Dict))
        return "\n\n".join([*parts, ", ".join(f"`{ast.literal_eval(key)}`" for key in keys if key)])
    parts.append(docstring(node))
    if isinstance(node, ast.ClassDef):
        functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        methods = [f for f in functions if not f.name.startswith("_") and ast.get_docstring(f)]
        parts += ["**Methods**", "\n".join(map(method, methods))] if methods else []
    return "\n\n".join(parts)


def method(node: ast.FunctionDef) -> str:
    """Return a method as an item of a list: its signature and what it does."""
    assert node.returns
    called = "property" not in map(ast.unparse, node.decorator_list)
    head = f"({', '.join(parameters(node)[1:])}) -> " if called else ": "
    return f"- `{node.name}{head}{ast.unparse(node.returns)}`: {docstring(node).splitlines()[0]}"


def signature(node: Definition) -> str:
    """Return the head of a definition, one argument to a line if it is long."""
    if isinstance(node, ast.AnnAssign):
        return f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"
    if isinstance(node, ast.FunctionDef):
        assert node.returns
        head, arguments = f"def {node.name}", parameters(node)
        end = f") -> {ast.unparse(node.returns)}"
    else:
        fields = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
        head, arguments, end = f"class {node.name}", fields or constructor(node), ")"
        if not arguments:
            return head
    line = f"{head}({', '.join(arguments)}{end}"
    if len(line) <= 60:
        return line
    return "\n".join([f"{head}(", *(f"    {argument}," for argument in arguments), end])


def parameters(function: ast.FunctionDef) -> list[str]:
    """Return the parameters of a function with their annotations and defaults."""
    found = COMMA.split(ast.unparse(function.args))
    return [re.sub(r"(: [^=]*)=", r"\1 = ", parameter) for parameter in found]


def constructor(node: ast.ClassDef) -> list[str]:
    """Return the parameters of a class: of the nearest ``__init__`` that names any."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__" and part.args.args[1:]:
            return parameters(part)[1:]
    base = torch_layers().get(ast.unparse(node.bases[-1]).split(".")[-1]) if node.bases else None
    return constructor(base) if base else []


@cache
def torch_layers() -> dict[str, ast.ClassDef]:
    """Return the classes of ``torch.nn`` by name."""
    found = find_spec("torch")
    assert found
    assert found.origin
    files = sorted((Path(found.origin).parent / "nn/modules").glob("[!_]*.py"))
    nodes = (node for file in files for node in parsed(file).body)
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """Return a docstring as Markdown: roles as code, sections as lists."""
    text = re.sub(r":\w+:(?=`)", "", ast.get_docstring(node) or "").replace("``", "`")
    prose, *sections = SECTION.split(text)
    prose = re.sub(r"(?<=\S)\n(?=\S)", " ", prose)
    prose = INDENTED.sub(lambda code: f"```python\n{dedent(code[0]).strip()}\n```\n\n", prose)
    return "\n\n".join([prose.strip(), *map(section, sections[::2], sections[1::2])])


def section(name: str, body: str) -> str:
    """Return a section of a docstring as Markdown."""
    body = dedent(body).strip()
    if name == "Example":
        return f"**Example**\n\n```pycon\n{body}\n```"
    if name == "Returns":
        return f"**Returns** {' '.join(body.split())}"
    items = [" ".join(item.split()).partition(": ") for item in re.split(r"\n(?=\S)", body)]
    lines = (f"- `{key.removeprefix('- ')}`: {text}" for key, _, text in items)
    return "\n".join([f"**{name}**\n", *lines])
