"""What the processes of a group do together, and how a wait of theirs ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from groups.fakes import together
from job.fakes import fake_runtime

from codedgrad.errors import WorkerError
from codedgrad.groups import channel
from codedgrad.groups.channel import GroupChannel


def test_the_leader_tells() -> None:
    words = together(3, lambda g: g.tell([g.member, 10 + g.member], "in a test"))
    assert words == [[0, 10]] * 3


def test_all_agree() -> None:
    def work(group: GroupChannel) -> list[bool]:
        return group.agree(group.member != 1, "in a test", lambda: None)

    assert together(3, work) == [[True, False, True]] * 3


def waiting(tests: list[bool], member: int = 1, **engine: Any) -> GroupChannel:
    """A process of a group of two, whose collectives answer these, one by one."""
    answers = iter(tests)
    request = SimpleNamespace(test=lambda: next(answers))
    collectives: Any = SimpleNamespace(
        start_broadcast=lambda *_, **__: request,
        start_allgather=lambda *_: request,
    )
    collectives.of_ranks = lambda _: collectives
    runtime = fake_runtime(2, rank=member, channel=collectives, **engine)
    connection: Any = SimpleNamespace(peers=[0, 1], group=None)
    return GroupChannel(runtime, [0, 1], connection)


def test_something_is_done_meanwhile() -> None:
    done: list[int] = []
    group = waiting([False, False, True])
    group.agree(True, "in a test", lambda: done.append(1))
    assert len(done) == 2
    assert not group.gave_up


def test_a_failure_of_the_job_ends_a_wait_and_its_memory_is_kept() -> None:
    group = waiting([False], failed=True, failure="worker 7 failed: disk full")
    with pytest.raises(WorkerError, match="worker 7 failed: disk full"):
        group.tell([0], "in a test")
    assert group.gave_up


def test_a_leader_gives_up_before_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_TICK_S", 0.0)
    monkeypatch.setattr(channel, "_LONGER_S", 1000.0)
    leader, follower = waiting([False] * 9, member=0), waiting([False] * 3 + [True])
    for group in (leader, follower):
        group.job.timeout_s = 0.0  # _longer was made before: the limit is 1010 s
    with pytest.raises(WorkerError, match=r"gave up: nothing came from worker\(s\) 1"):
        leader.agree(True, "in a test", lambda: None)
    assert follower.tell([3], "in a test") == [3]


def test_a_broken_connection_waits_for_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait() -> None:
        raise RuntimeError("connection closed by peer")

    transfer = SimpleNamespace(is_completed=lambda: True, wait=wait)
    monkeypatch.setattr(channel, "_REASON_S", 0.05)
    group = waiting([])
    words = "worker 1 lost its local group in step 3: connection closed by peer"
    with pytest.raises(WorkerError, match=words):
        group.finish(transfer, "in step 3")
    assert group.job.engine.said == [words]

    group = waiting([])

    def failing() -> bool:
        group.job.engine.failed, group.job.engine.failure = True, "disk full"
        return True

    transfer.is_completed = failing
    with pytest.raises(WorkerError, match="disk full"):
        group.finish(transfer, "in step 3")
