"""docs/api.md says what the docstrings say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    make_api = maker()
    if make_api.page() != make_api.PAGE.read_text():
        pytest.fail(
            f"docs/api.md is not what the docstrings say; run `{make_api.COMMAND}`",
            pytrace=False,
        )


def test_every_public_name_has_a_docstring() -> None:
    assert maker().undocumented() == []


def test_what_keywords_refer_to_stands_on_the_page() -> None:
    text = maker().page()
    for name in set(re.findall(r"see `(\w+(?:Settings|Keywords))`", text)):
        assert f"### `{name}`" in text, name


def test_the_page_says_nothing_of_the_machine_that_made_it() -> None:
    text = maker().page()
    for word in (" at 0x", "<function", "<class", str(DOCS.parent), "PosixPath"):
        assert word not in text
