"""What the package requires, and what an error says where an extra is missing."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import forks
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


USES = {  # of libraries, and the extras that bring them
    "matplotlib": ("codedgrad.monitor.plot_arrivals", "plots"),
    "tensorboard": ("codedgrad.monitor.TensorBoardMonitor", "tensorboard"),
    "prometheus_client": ("import codedgrad.monitor.prometheus", "prometheus"),
}


@functools.cache
def ended() -> dict[str, forks.Ended]:
    scripts = [
        f"import sys, codedgrad\nsys.modules[{library!r}] = None\n{use}"
        for library, (use, _) in USES.items()
    ]
    return dict(zip(USES, forks.run_all(scripts), strict=True))


@pytest.mark.parametrize("library", USES)
def test_an_extra_that_is_missing_is_named(library: str) -> None:
    extra = USES[library][1]
    last = ended()[library].stderr.splitlines()[-1]
    assert last.startswith("codedgrad.errors.EnvironmentSetupError: ")
    assert library in last
    assert f"pip install 'codedgrad[{extra}]'" in last
