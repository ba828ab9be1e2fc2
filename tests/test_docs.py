"""What the README and the pages of docs show, runs.

The blocks of a page run in their order, Python in one namespace. Comments in the page, which no
reader sees, say what a block needs:

    <!-- name.py -->        the block is a file of this name, which later commands read
    <!-- given code -->     runs before the block
    <!-- inside module -->  the block is this module but for imports, docstrings, annotations
    <!-- raises Error -->   the block, or a test that it defines, ends in this exception

A ``text`` block is what the block before it prints, but for the digits; one with a line ``...`` is
an excerpt, and not compared.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tyro

import evaluate
import predict
import sweep
from manual_ops.check.__main__ import main as check_command
from training.cli import parse_args
from training.study import parse_settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>python|sh|bash)\n(?P<code>.*?)^```\n"
    r"(?:```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)

# what torchrun says to a process that is alone
ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


@dataclass(frozen=True)
class Block:
    """A block of a page: its code, what it needs, what it prints (None: not said)."""

    page: str
    line: int
    language: str
    code: str
    note: str
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code"))
        note, printed = found["note"] or "", found["printed"]
        yield Block(str(page), line, found["language"], found["code"], note, printed)


class Bare(ast.NodeTransformer):
    """Leaves imports, docstrings and annotations out."""

    def visit_Import(self, _: ast.Import) -> None: ...

    def visit_ImportFrom(self, _: ast.ImportFrom) -> None: ...

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.Assign:
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)


def run_python(block: Block, names: dict) -> None:
    kind, _, rest = block.note.partition(" ")
    if kind.endswith(".py"):
        Path(kind).write_text(block.code)
    elif kind == "given":
        exec(rest, names)
    elif kind == "inside":
        source = inspect.getsource(importlib.import_module(rest))
        assert ast.unparse(Bare().visit(ast.parse(block.code))) == ast.unparse(
            Bare().visit(ast.parse(source))
        )
        return
    earlier = dict(names)
    with pytest.raises(Exception) if kind == "raises" else nullcontext() as raised:
        # The empty lines make a traceback point into the page.
        exec(compile("\n" * block.line + block.code, block.page, "exec"), names)
        for name, test in list(names.items())[len(earlier) :]:
            if name.startswith("test_"):
                test()
    if raised:
        assert type(raised.value).__name__ == rest


def run_check(args: list[str], printed: str | None) -> None:
    if "path/to" in " ".join(args) or "--all" in args:  # the reader's own file; minutes
        return
    failed = check_command(args)
    assert failed == (printed is not None and "FAIL" in printed)


def parse_sweep(args: list[str], _printed: str | None) -> None:
    parse_settings(sweep.parse_args(args)[1])


def parse_train(args: list[str], _printed: str | None) -> None:
    if not {"--help", "--resume"} & set(args):  # these read a run, and end the program
        parse_args(args)


def parser_of(program: ModuleType) -> Callable[[list[str], str | None], None]:
    return lambda args, _printed: tyro.cli(program.Arguments, args=args)


def find_module(args: list[str], _printed: str | None) -> None:
    assert importlib.util.find_spec(args[0]), args


COMMANDS: dict[str, Callable[[list[str], str | None], None]] = {
    "python -m manual_ops.check ": run_check,
    "python -m ": find_module,
    "python train.py": parse_train,
    "python sweep.py": parse_sweep,
    "python evaluate.py": parser_of(evaluate),
    "python predict.py": parser_of(predict),
    "torchrun ": lambda args, printed: parse_train(args[args.index("train.py") + 1 :], printed),
}


def run_shell(block: Block) -> None:
    for command in block.code.replace("\\\n", " ").splitlines():
        for start, run in COMMANDS.items():
            if command.startswith(start):
                run(shlex.split(command.removeprefix(start), comments=True), block.printed)
                break


def blurred(text: str) -> str:
    """Leave out digits, and the place of what is right: where its largest error happens to be."""
    text = re.sub(r"( pass\b).*", r"\1", text.strip())
    return re.sub(r"\d[\d.e+-]*", "0", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name, value in ONE_PROCESS.items():
        monkeypatch.setenv(name, value)
    names: dict = {"__name__": "page"}
    for block in blocks(page):
        torch.manual_seed(0)
        capsys.readouterr()
        if block.language == "python":
            run_python(block, names)
        else:
            run_shell(block)
        if block.printed is not None and "\n..." not in block.printed:
            assert blurred(capsys.readouterr().out) == blurred(block.printed), block


def test_every_block_is_found() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~)(\w+)", page.read_text(), re.MULTILINE)
        assert set(fences) <= {"python", "sh", "bash", "text", "console", "formula"}, page
        code = [fence for fence in fences if fence in ("python", "sh", "bash")]
        assert len(code) == len(list(blocks(page))), page
