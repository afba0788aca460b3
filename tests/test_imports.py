"""The direction of imports, and that importing needs no MPI."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "codedgrad"
# What each part may import of the package, beside itself. Nothing imports upwards.
BASE = {"errors", "config"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "codes": BASE,
    "decoders": BASE,
    "rng": set(),
    "ops": {"errors"},
    "reports": set(),
    "boundaries": set(),
    "patience": {"errors"},
    "faults": BASE,
    "shards": BASE | {"codes"},
    "cuts": {"errors"},
    "cuda": {"errors", "ops", "_engine"},
    "devices": BASE | {"cuda"},
    "buckets": BASE | {"cuts", "devices", "ops"},
    "encoding": BASE | {"buckets", "ops"},
    "startup": BASE | {"_engine"},
    "runtime": BASE | {"startup"},
    "engine": BASE | {"runtime", "buckets", "codes", "devices", "_engine"},
    "link": BASE | {"buckets", "codes", "engine", "runtime"},
    "broadcast": BASE | {"runtime"},
    "overlap": BASE | {"buckets", "encoding"},
    "passes": BASE
    | {"boundaries", "buckets", "codes", "devices", "faults", "overlap", "rng"}
    | {"shards"},
    "reporting": {"codes", "engine", "passes", "patience", "reports", "traces"},
    "helping": {"codes", "engine"},
    "local_group": BASE | {"runtime"},
    "group_exchange": BASE | {"buckets", "codes", "engine", "local_group"},
    "group_step": BASE
    | {"boundaries", "buckets", "codes", "engine", "group_exchange", "helping"}
    | {"local_group", "passes", "reporting", "shards"},
    "policy": {"errors"},
    "estimates": BASE | {"buckets", "codes", "decoders", "engine", "policy", "_engine"},
    "gradient": BASE
    | {
        "estimates",
        "group_exchange",
        "group_step",
        "helping",
        "link",
        "local_group",
        "policy",
        "rng",
    }
    | {"boundaries", "buckets", "codes", "engine", "faults", "passes", "patience"}
    | {"reporting", "reports", "runtime", "shards", "traces"},
    "optimizer": BASE
    | {"buckets", "codes", "engine", "link", "overlap", "rng", "runtime", "shards"},
    "traces": BASE | {"reports"},
    "simulate": BASE | {"codes", "traces"},
    "monitor": BASE | {"reports", "traces"},
    "doctor": BASE | {"startup"},
    "commands": BASE | {"decoders", "monitor", "simulate", "traces"},
    "cli": BASE | {"commands", "doctor"},
    "__main__": {"cli"},
}
LAYERS["runtime"] = LAYERS["runtime"] | {"_engine"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
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
        found |= {n.split(".")[1] for n in names if n.startswith("codedgrad.")}
    return found


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_imported_backwards(path: Path) -> None:
    part = part_of(path)
    assert part in LAYERS, "a new part: say in LAYERS what it may import"
    assert imported(path) - {part} <= LAYERS[part]


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
        "import sys, codedgrad, codedgrad.cli, codedgrad.ops, codedgrad._ops\n"
        "heavy = {'mpi4py', 'codedgrad._engine', 'matplotlib', 'tensorboard'}\n"
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
