"""When a training looks whether somebody asks to come in."""

from __future__ import annotations

from typing import Any

import pytest

from codedgrad.groups.comeback import Comeback


def test_nobody_comes_in_at_the_end_of_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What follows the steps there is not for a process that has made none."""
    one: Any = object.__new__(Comeback)
    one._passes = 0
    seen: list[Any] = []
    monkeypatch.setattr(one, "look", lambda *_: seen.append("look"))
    monkeypatch.setattr(one, "before_step", lambda: seen.append("put back"))
    for step in one.between(None, None, iter([1, 2])):
        seen.append(step)
    seen.append("a schedule")
    assert seen == ["look", "put back", 1, "look", "put back", 2, "a schedule"]
