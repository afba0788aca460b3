"""A page that the leader writes and all processes of its group read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from groups.fakes import together

from codedgrad.groups import board
from codedgrad.groups.board import Board

if TYPE_CHECKING:
    import pytest

    from codedgrad.groups.channel import GroupChannel


def test_all_read_what_the_leader_writes() -> None:
    def work(group: GroupChannel) -> tuple[list[int], list[int]]:
        page = Board(group)
        before = [page.decoded, page.cancelled(2)]
        group.job.gather(b"", "in a test")
        if group.leads:
            page.raise_decoded(4)
            page.raise_decoded(3)  # which is less: it stays
            page.cancel(2, 7)
        group.job.gather(b"", "in a test")
        return before, [page.decoded, page.cancelled(1), page.cancelled(2)]

    for before, after in together(3, work):
        assert before == [-1, -1]
        assert after == [4, -1, 7]


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_SHARED", tmp_path)
    pages = together(2, Board)
    assert list(tmp_path.iterdir()) == []
    pages[0].raise_decoded(1)
    assert pages[1].decoded == 1  # and it is still shared
