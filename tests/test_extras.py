"""What the package requires, and what an error says where an extra is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
SOURCES = "\n".join(p.read_text() for p in (ROOT / "codedgrad").rglob("*.py"))


def test_what_is_required_is_imported() -> None:
    block = PROJECT.split("\ndependencies = [")[1].split("]")[0]
    names = re.findall(r'"([\w-]+)', block)
    assert {"torch", "numpy"} <= set(names)
    for name in names:
        assert re.search(rf"^\s*(import|from) {name}\b", SOURCES, re.MULTILINE), name


def test_extras_that_errors_name_exist() -> None:
    extras = PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = set(re.findall(r'missing_extra\("(\w+)"', SOURCES))
    assert named >= {"plots", "prometheus", "tensorboard", "parquet", "examples"}
    for name in named:
        assert re.search(rf"^{name} = \[", extras, re.MULTILINE), name


@pytest.mark.parametrize(
    ("library", "use", "extra"),
    [
        ("matplotlib", "codedgrad.monitor.plot_arrivals", "plots"),
        ("tensorboard", "codedgrad.monitor.TensorBoardMonitor", "tensorboard"),
        ("prometheus_client", "import codedgrad.monitor.prometheus", "prometheus"),
    ],
)
def test_an_extra_that_is_missing_is_named(library: str, use: str, extra: str) -> None:
    script = f"import sys, codedgrad\nsys.modules[{library!r}] = None\n{use}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("codedgrad.errors.EnvironmentSetupError: ")
    assert library in last
    assert f"pip install 'codedgrad[{extra}]'" in last
