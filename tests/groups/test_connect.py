"""Two engines of one leader: where one fails, the other does, too."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from codedgrad.groups import connect


class FakeEngine:
    failed = False
    failure = ""

    def fail(self, text: str) -> None:
        if not self.failed:
            self.failed, self.failure = True, text


@pytest.mark.parametrize("first", [0, 1])
def test_a_failure_of_one_engine_is_one_of_both(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_TIE_S", 0.005)
    engines = [FakeEngine(), FakeEngine()]
    tie = connect._Tie(*engines)
    engines[first].fail("worker 2 failed: disk full")
    end = time.monotonic() + 10.0
    while not engines[1 - first].failed:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert engines[1 - first].failure == "worker 2 failed: disk full"
    tie.end()


def test_a_failure_is_passed_on_before_the_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "_TIE_S", 1000.0)
    calls: list[str] = []
    job, leaders = FakeEngine(), FakeEngine()
    across: Any = SimpleNamespace(engine=leaders)
    leaders.stop = lambda _: calls.append(leaders.failure) or True  # type: ignore[attr-defined]
    runtime: Any = SimpleNamespace(
        engine=job,
        channel=SimpleNamespace(of_ranks=lambda ranks: ranks),
        over=lambda *_: across,
    )
    both = connect.Leaders(runtime, [0, 2])
    job.fail("disk full")
    assert both.stop(1.0)
    assert calls == ["disk full"]


def test_an_end_of_a_torch_that_the_user_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(connect.dist, "destroy_process_group", ended.append)
    monkeypatch.setattr(connect.dist, "is_initialized", lambda: False)
    connect.Connection("ours", [0, 1], began=True).close()
    assert ended == []
    monkeypatch.setattr(connect.dist, "is_initialized", lambda: True)
    connect.Connection("ours", [0, 1], began=True).close()
    connect.Connection("ours", [0, 1], began=False).close()
    assert ended == [None, "ours"]  # all of torch.distributed, or the group alone
