"""What the documents point to exists: pages, headings, files and names of code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launch" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "codedgrad|csrc|tests|docs|launch|benchmarks"
# What a reader of docs/add-a-*.md writes.
TO_BE_WRITTEN = {
    "codedgrad/codes/ring.py",
    "codedgrad/lab/decoders/halfway.py",
    "csrc/transport/mail_transport.cpp",
    "csrc/transport/mail_transport.h",
}
# Files that installing or running makes.
MADE = ("benchmarks/results/NAME",)

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda p: str(p.relative_to(ROOT))
)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.*)$", prose, flags=re.M)
    clean = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in clean}


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{target} is not there"
        assert ROOT in linked.parents, f"{target} is outside of the repository"
        if heading:
            assert heading in anchors(linked), f"{target} has no such heading"


@each_page
def test_paths_of_code_exist(page: Path) -> None:
    paths = re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./*-]*[\w*])", page.read_text())
    missing = [
        path
        for path in sorted(set(paths) - TO_BE_WRITTEN)
        if not path.startswith(MADE) and not any(ROOT.glob(path))
    ]
    assert missing == []


@each_page
def test_dotted_names_of_code_exist(page: Path) -> None:
    names = re.findall(r"`(codedgrad(?:\.\w+)+)", page.read_text())
    assert [name for name in sorted(set(names)) if not resolves(name)] == []


def resolves(name: str) -> bool:
    """Is it a module, or a name in one?"""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        try:
            found = importlib.import_module(".".join(words[:count]))
        except ModuleNotFoundError:
            continue
        for word in words[count:]:
            if not hasattr(found, word):
                return False
            found = getattr(found, word)
        return True
    return False
