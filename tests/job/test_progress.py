"""Who cannot go on: workers that wait in a collective while others wait in a step."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from job.fakes import fake_runtime

from codedgrad.errors import WorkerError
from codedgrad.job import progress
from codedgrad.job.progress import Announcement, Deadlock, Progress, uneven
from codedgrad.job.runtime import Runtime
from codedgrad.job.waiting import Waiting, give_up


def told(occasion: str, *, steps: int | None = None, data: bytes = b"") -> bytes:
    made = Progress()
    if steps is not None:
        made.track("worker", steps)
    return Announcement.encode(occasion, made, data)


def deadlock(runtime: Runtime, *, counted: bool = True) -> Deadlock:
    count = runtime.track(0) if counted else None
    return Deadlock(runtime, lambda text: give_up(runtime, text), count)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic() + seconds
    monkeypatch.setattr(time, "monotonic", lambda: now)


@pytest.mark.parametrize("data", [b"", b"\0", b"a\x1fb\0c"])
@pytest.mark.parametrize("steps", [None, 0, 7])
def test_what_is_announced_is_read_again(steps: int | None, data: bytes) -> None:
    place = Announcement.decode(told("in a barrier", steps=steps, data=data))
    wanted = {} if steps is None else {"worker1": steps}
    assert place == ("in a barrier", wanted, data)


@pytest.mark.parametrize(
    ("occasion", "words"),
    [
        (
            "at the end of the job",
            "worker 0 gave up: it waits in step 5 for worker 2, which has ended its "
            "training after 5 step(s) and waits at the end of the job. Run the same "
            "number of steps",
        ),
        (
            "in a barrier",
            "worker 0 gave up: it waits in step 5 for worker 2, which waits in a "
            "barrier after 5 step(s). Run the same number of steps",
        ),
        ("to compare the model", "worker 2, which waits to compare the model after 5"),
    ],
)
def test_a_worker_in_a_collective_is_not_waited_for(
    occasion: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = fake_runtime(announced=lambda: {2: told(occasion, steps=5)})
    look = deadlock(runtime).look
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        look("in step 5", 5)  # told at once
        look("in step 5", 5)  # and once
    assert len(caplog.records) == 1
    assert "worker 2, which" in caplog.text
    assert "go on for at most `window` steps" in caplog.text  # they may be helped
    assert runtime.engine.said == []
    later(monkeypatch, progress.GRACE_S + 0.1)
    with pytest.raises(WorkerError) as caught:
        look("in step 5", 5)
    assert words in str(caught.value)
    assert runtime.engine.said == [str(caught.value)]


def test_a_worker_that_has_made_the_step_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is ahead: its engine, or another one, still brings what this one needs."""
    runtime = fake_runtime(announced=lambda: {1: told("in a barrier", steps=6)})
    look = deadlock(runtime).look
    look("in step 5", 5)
    later(monkeypatch, 60.0)
    look("in step 5", 5)
    assert runtime.engine.said == []


def test_a_straggler_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in a pass, which may take minutes, and so in no collective."""
    runtime = fake_runtime(announced=dict)
    look = deadlock(runtime).look
    look("in step 5", 5)
    later(monkeypatch, 600.0)
    look("in step 5", 5)


def test_who_comes_out_of_its_collective_is_waited_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: dict[int, bytes] = {1: told("in a barrier", steps=5)}
    runtime = fake_runtime(announced=lambda: places)
    look = deadlock(runtime).look
    look("in step 5", 5)
    places.clear()
    later(monkeypatch, 4.0)
    look("in step 5", 5)
    places[1] = told("in a barrier", steps=5)
    look("in step 5", 5)
    later(monkeypatch, 3.0)
    look("in step 5", 5)
    assert runtime.engine.said == []


def test_an_exchange_that_is_unknown_there_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = fake_runtime(announced=lambda: {1: told("to close an exchange")})
    look = deadlock(runtime).look
    look("in step 5", 5)
    later(monkeypatch, 60.0)
    look("in step 5", 5)


def test_a_leader_hears_where_the_leader_of_another_group_waits() -> None:
    job = fake_runtime(size=4, announced=lambda: {2: told("in a barrier"), 1: b"x\0"})
    leaders = fake_runtime(size=2, announced=dict)
    leaders.outer = (job, [0, 2])
    assert {g: p.occasion for g, p in leaders.places().items()} == {1: "in a barrier"}


def test_a_wait_that_all_must_join_ends_if_one_waits_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = fake_runtime(announced=lambda: {2: told("at the end of the job")})
    waits = Waiting(runtime, "for its leader", quiet_s=60.0, joined=True)
    waits.tick([1, 2])
    later(monkeypatch, progress.GRACE_S + 0.1)
    waits.tick([1])  # the other one is not waited for
    waits.tick([2])
    later(monkeypatch, progress.GRACE_S + 0.1)
    with pytest.raises(WorkerError, match="worker 2, which has ended its training and"):
        waits.tick([2])


@pytest.mark.parametrize(
    ("every", "words"),
    [
        ([{}, {}], None),
        ([{"worker1": 8}, {"worker1": 8}], None),
        ([{"worker1": 8, "group1": 3}, {"worker1": 8}], None),
        (
            [{"worker1": 8}, {"worker1": 5}, {"worker1": 8}],
            "8 were made, but worker 1 made 5",
        ),
        (
            [{"worker1": 8, "worker2": 1}, {"worker1": 8, "worker2": 2}],
            "2 were made, but worker 0 made 1",
        ),
    ],
)
def test_uneven_numbers_of_steps_are_told(every: Any, words: str | None) -> None:
    text = uneven("worker", every)
    assert (text is None) if words is None else (words in str(text))
