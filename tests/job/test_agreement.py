"""Workers that disagree are told who differs from worker 0, and in what."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from codedgrad.errors import MismatchError
from codedgrad.job import runtime
from codedgrad.job.agreement import check_agreement

MINE = [("code", "spread"), ("seed", "0")]


def compare(
    monkeypatch: pytest.MonkeyPatch, *others: list[tuple[str, str]]
) -> MismatchError | None:
    """What worker 0 is told where it has MINE and the others these."""

    texts = [("\x1e".join("\x1f".join(p) for p in o)).encode() for o in others]
    occasions: list[str] = []

    def gather(data: bytes, occasion: str) -> list[bytes]:
        occasions.append(occasion)
        if occasion == "to compare the settings":
            assert len(data) == 16  # a hash, whatever the length of the text
            hashes = [hashlib.blake2b(t, digest_size=16).digest() for t in texts]
            return [data, *hashes]
        return [data, *texts]

    job = SimpleNamespace(gather=gather, unit="worker")
    monkeypatch.setattr(runtime, "_current", job)
    found = None
    try:
        check_agreement("settings", MINE)
    except MismatchError as error:
        found = error
    # Nobody raises before all have the texts.
    assert len(occasions) == (1 if found is None else 3)
    assert found is None or found.everywhere
    return found


def test_all_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(monkeypatch, MINE, MINE) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([("code", "spread"), ("seed", "1")], "has seed = 1, worker 0 has 0"),
        (
            [("seed", "0"), ("code", "spread")],
            "has seed (0) where worker 0 has code (spread)",
        ),
        ([("code", "spread")], "has nothing (nothing) where worker 0 has seed (0)"),
        (
            [*MINE, ("wire", "float16")],
            "has wire (float16) where worker 0 has nothing (nothing)",
        ),
    ],
)
def test_the_first_difference_is_named(
    other: list[tuple[str, str]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = compare(monkeypatch, MINE, other)
    text = f"the workers disagree about the settings: worker 2 {words}. Run the same"
    assert str(error).startswith(text)


def test_every_worker_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = compare(monkeypatch, [("code", "cyclic")], [("code", "uncoded")])
    assert "worker 1 has code = cyclic, worker 0 has spread; worker 2" in str(error)
