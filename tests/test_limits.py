"""Limits of size: of files, of functions, and of what is passed by position.

A call that hands on more than five values by position cannot be read without the
callee's signature beside it. Values that belong together travel as a dataclass, others
as keywords.
"""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES, FUNCTION_LINES, POSITIONAL = 400, 60, 5
# Folders that hold no sources of ours, for a tree without git.
NOT_OURS = {".venv", "build", "dist", "results", "runs", "node_modules"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files() -> list[Path]:
    """Return the Python files of the repository, also those that git does not track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    try:
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        )
        files = [ROOT / line for line in listed.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        files = [
            p
            for p in ROOT.rglob("*.py")
            if not NOT_OURS & set(p.relative_to(ROOT).parts[:-1])
        ]
    return sorted(p for p in files if p.is_file())


FILES = python_files()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def own_names() -> frozenset[str]:
    """Return the names of all functions and classes of ours, bindings included.

    Functions that take any number of values, such as the words of a command, are left
    out, and so are all others of the same name.
    """
    stubs = (ROOT / "codedgrad").rglob("*.pyi")
    nodes = [n for path in [*FILES, *stubs] for n in ast.walk(tree_of(path))]
    functions = [n for n in nodes if isinstance(n, Function)]
    classes = {n.name for n in nodes if isinstance(n, ast.ClassDef)}
    variadic = {f.name for f in functions if f.args.vararg is not None}
    return frozenset({f.name for f in functions} | classes) - variadic


def name_of(call: ast.Call) -> str | None:
    """Return the last word of what is called: `f` of `f(...)`, `a.f(...)`."""
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else None


def faults_of(tree: ast.Module, own: frozenset[str]) -> list[str]:
    """Return what is too large in a file, beside the file itself."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            parameters = [*node.args.posonlyargs, *node.args.args]
            count = len([p for p in parameters if p.arg not in ("self", "cls")])
            where = f"line {node.lineno}: {node.name}"
            if lines > FUNCTION_LINES:
                faults.append(f"{where} has {lines} lines")
            if count > POSITIONAL:
                faults.append(f"{where} has {count} positional parameters")
        # A starred value counts as one: its length is not known before the call.
        elif isinstance(node, ast.Call) and len(node.args) > POSITIONAL:
            name = name_of(node)
            if name in own:
                faults.append(
                    f"line {node.lineno}: {name}() gets {len(node.args)} values by "
                    f"position"
                )
    return faults


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_limits(path: Path) -> None:
    faults = faults_of(tree_of(path), own_names())
    lines = len(path.read_text().splitlines())
    if lines > FILE_LINES:
        faults.append(f"the file has {lines} lines")
    assert not faults, "\n".join(faults)


def test_what_is_too_large_is_found() -> None:
    long = "def long():\n" + "    pass\n" * FUNCTION_LINES
    wide = "class A:\n    def wide(self, a, b, c, d, e, f): ...\n"
    fits = "def fits(a, b, c, d, e, *, f): ...\nA().fits(1, 2, 3, 4, 5, f=6)\n"
    call = "A().wide(1, 2, 3, 4, 5, 6)\nmax(1, 2, 3, 4, 5, 6)\n"
    assert faults_of(ast.parse(long + wide + fits + call), frozenset({"wide"})) == [
        "line 1: long has 61 lines",
        "line 63: wide has 6 positional parameters",
        "line 66: wide() gets 6 values by position",
    ]
