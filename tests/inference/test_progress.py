"""The bar on worker 0, with tqdm and without."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from codedgrad.codes.tree import SumTree
from codedgrad.errors import EnvironmentSetupError
from codedgrad.inference.parts import Shares, cut
from codedgrad.inference.progress import Bar


def test_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    for show in (None, False):
        with Bar(show=show, total=3) as bar:
            bar.show(None, None, None)  # type: ignore[arg-type]
    with pytest.raises(EnvironmentSetupError, match=r"codedgrad\[progress\]"):
        Bar(show=True, total=3)


def test_it_counts_what_has_arrived(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    parts = cut(SumTree.of_levels((4,)), 10)
    here = {parts[0].node, parts[2].node}
    exchange = SimpleNamespace(has=lambda _, node: node in here)
    session: Any = SimpleNamespace(exchange=exchange, number=0)
    with Bar(show=True, total=10) as bar:
        shares = Shares(parts, 0, 1, None)
        bar.show(session, shares, 5)
        assert bar._bar.n == 5
        bar._next_s = 0.0
        bar.show(session, shares, None)
        assert bar._bar.n == sum(parts[i].stop - parts[i].first for i in (0, 2))
    assert "evaluate" in capsys.readouterr().err
