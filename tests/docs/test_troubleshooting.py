"""The messages of docs/troubleshooting.md are those that the package has."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
NOT_OURS = {"missing 1 required positional argument"}
ROWS = re.findall(r"^\| (`.+?) \|", PAGE, flags=re.M)
MESSAGES = [m for row in ROWS for m in re.findall(r"`([^`]+)`", row)]


@cache
def texts() -> str:
    """All texts of the package, with a mark where a value stands in them."""
    found = [path.read_text() for path in (ROOT / "csrc").rglob("*.cpp")]
    for path in (ROOT / "codedgrad").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    p.value if isinstance(p, ast.Constant) else "<>"
                    for p in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_ours(message: str) -> None:
    assert message in NOT_OURS or message in texts()


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 30
