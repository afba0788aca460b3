"""A vote is published early, collected late, and before any other round."""

from __future__ import annotations

from typing import Any

from job.fakes import fake_runtime

from codedgrad.job import votes
from codedgrad.job.progress import Announcement, Progress
from codedgrad.job.runtime import Runtime


def blob(occasion: str, data: bytes) -> bytes:
    return Announcement.encode(occasion, Progress(), data)


class Rounds:
    """The rounds of two workers; the other one's blobs come when they are given."""

    def __init__(self) -> None:
        self.mine: list[bytes] = []
        self.theirs: list[bytes | None] = []
        self.gathered = 0

    def gather(self, _: float) -> tuple[list[bytes | None] | None, list[int]]:
        if len(self.mine) <= self.gathered or len(self.theirs) <= self.gathered:
            return None, [1]
        blobs = [self.mine[self.gathered], self.theirs[self.gathered]]
        self.gathered += 1
        return blobs, []

    def announced(self) -> dict[int, Any]:
        here = self.theirs[self.gathered : self.gathered + 1]
        return {1: here[0]} if here else {}


def job_of(rounds: Rounds) -> Runtime:
    return fake_runtime(
        2,
        publish=rounds.mine.append,
        gather=rounds.gather,
        announced=rounds.announced,
    )


def test_there_is_none() -> None:
    job = job_of(Rounds())
    assert job.votes.take(job) is None


def test_it_is_collected_once_by_whoever_comes_first() -> None:
    rounds = Rounds()
    job = job_of(rounds)
    job.votes.cast(job, b"no")
    rounds.theirs += [blob(votes.OCCASION, b"yes"), blob("in a barrier", b"b")]
    assert job.gather(b"a", "in a barrier") == [b"a", b"b"]
    assert job.votes.take(job) == [b"no", b"yes"]
    assert job.votes.take(job) is None


def test_who_is_lost_has_not_voted() -> None:
    rounds = Rounds()
    job = job_of(rounds)
    job.votes.cast(job, b"no")
    rounds.theirs.append(None)
    assert job.votes.take(job) == [b"no", None]


def test_who_has_voted_waits_nowhere() -> None:
    """And what comes behind the vote is seen although nobody has asked for it."""
    rounds = Rounds()
    job = job_of(rounds)
    rounds.theirs.append(blob(votes.OCCASION, b"yes"))
    assert job.places() == {}
    job.votes.cast(job, b"no")
    rounds.theirs.append(blob("in a barrier", b""))
    assert job.places()[1].occasion == "in a barrier"
    assert job.votes.take(job) == [b"no", b"yes"]
