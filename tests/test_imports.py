"""The direction of imports, and that importing needs no MPI."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "codedgrad"
# What each part may import of the package, beside itself. Nothing imports upwards.
LOW = {"errors", "codes", "job"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "codes": {"errors"},
    "job": {"errors", "codes"},
    "inputs": {"errors", "codes"},
    "ops": {"errors"},
    "monitor": {"errors"},
    "row": {"errors", "ops", "job"},
    "exchange": LOW | {"row"},
    "step": LOW | {"ops", "row", "exchange", "inputs", "monitor"},
    "groups": LOW | {"row", "exchange", "inputs", "step"},
    "inference": LOW | {"row", "exchange", "inputs", "step"},
    "faces": LOW
    | {"row", "exchange", "inputs", "monitor", "step", "groups", "inference"},
    "lab": {"errors", "codes", "monitor"},
    "__main__": {"errors", "job", "inference", "monitor", "lab"},
}
# Files at the top; a room's part is its folder's name.
TOP = dict.fromkeys(("__init__", "gradient", "hvd", "integrations"), "faces")
TOP["data"] = "inputs"


def part_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return TOP.get(name, name)


def modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, also for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "codedgrad":
                names = [f"codedgrad.{a.name}" for a in node.names]
            else:
                names = [node.module]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n for n in names if n.startswith("codedgrad.")}
    return found


def imported(path: Path) -> set[str]:
    """The parts that a file imports."""
    names = {n.split(".")[1] for n in modules(path)}
    return {TOP.get(name, name) for name in names}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_imported_backwards(path: Path) -> None:
    part = part_of(path)
    assert part in LAYERS, "a new part: say in LAYERS what it may import"
    assert imported(path) - {part} <= LAYERS[part]
    if part == "lab":  # the report's table, not what draws it
        drawn = {m for m in modules(path) if m.startswith("codedgrad.monitor.")}
        assert drawn <= {"codedgrad.monitor.report", "codedgrad.monitor.record"}


def test_the_table_is_in_order_and_short() -> None:
    assert len(LAYERS) <= 14
    known: set[str] = set()
    for part, below in LAYERS.items():
        assert below <= known, f"{part} may import what comes above it in the table"
        known.add(part)
    entries = [p for p in PACKAGE.iterdir() if not p.name.startswith("__pycache__")]
    assert len(entries) <= 18, "`ls codedgrad` tells the story: give this a room"


def test_one_file_touches_mpi4py() -> None:
    touching = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if "import mpi4py" in path.read_text() or "from mpi4py" in path.read_text()
    ]
    assert touching == ["job/channel.py"]


def test_environment_variables_are_read_in_one_file() -> None:
    reading = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if "os.environ" in path.read_text() or "getenv" in path.read_text()
    ]
    assert reading == ["job/environment.py"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "codes").glob("*.py")))
def test_codes_know_numpy_only(path: Path) -> None:
    text = path.read_text()
    for word in ("import torch", "from torch", "mpi4py"):
        assert word not in text


KERNELS = PACKAGE.parent / "csrc"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("ops", ["mpi.h", "engine/", "torch/", "pybind11"]),
        ("engine", ["torch/", "pybind11", "Python.h"]),
        ("transport", ["engine/", "torch/", "pybind11", "Python.h"]),
    ],
)
def test_kernels_know_no_workers_and_the_engine_no_python(
    folder: str, forbidden: list[str]
) -> None:
    for path in sorted((KERNELS / folder).rglob("*.*")):
        includes = [s for s in path.read_text().splitlines() if s.startswith("#inc")]
        for word in forbidden:
            assert not any(word in line for line in includes), (path, word)
        if path.name != "mpi_transport.cpp":
            assert not any("mpi.h" in line for line in includes), path


def test_import_loads_no_mpi_no_engine_and_nothing_heavy() -> None:
    probe = (
        "import sys, codedgrad, codedgrad.__main__, codedgrad.ops._ops\n"
        "heavy = {'mpi4py', 'codedgrad.job._engine', 'matplotlib', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_exports_exist() -> None:
    import codedgrad

    assert all(hasattr(codedgrad, name) for name in codedgrad.__all__)
    assert (PACKAGE / "py.typed").exists()
