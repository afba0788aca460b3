"""The rules of a predictor by themselves: deadlines, whom to ask, what to believe."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.inference.serving import messages
from codedgrad.inference.serving.counts import BOUNDS_S, Counts
from codedgrad.inference.serving.hands import Ask, Hands
from codedgrad.inference.serving.hedging import Hedging, Helpers
from codedgrad.inference.serving.policy import deadline, exact
from codedgrad.inference.serving.post import Post
from codedgrad.inference.serving.query import Answer, Query
from codedgrad.inference.serving.second import Second, rows_of
from codedgrad.inference.serving.seen import Deadline, Seen, shape_of
from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = shape_of((torch.zeros(2, 3),))


def answer(value: Any = 1, who: int = 0) -> Answer:
    return Answer(value, True, torch.zeros(1), who, 0.01)


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not there():
        assert time.monotonic() < end
        time.sleep(1e-3)


# ---- policies ----


def test_policies_say_what_they_are() -> None:
    assert str(exact()) == "exact()"
    assert exact().exact
    assert not exact().replicates
    assert deadline(0.05).at_s == 0.05
    assert deadline(0).replicates
    assert not deadline(0, "wait").replicates
    assert deadline("p99.5").quantile == pytest.approx(0.995)
    assert str(deadline("p90", "wait")) == "deadline('p90', doubtful='wait')"


@pytest.mark.parametrize(
    "at", [-1, math.nan, math.inf, "90", "p0", "p100", "px", None, True, "pnan"]
)
def test_a_deadline_is_seconds_or_a_quantile(at: Any) -> None:
    with pytest.raises(ConfigError, match="a deadline is seconds"):
        deadline(at)


def test_doubtful_is_one_of_two_words() -> None:
    with pytest.raises(ConfigError, match="replicate"):
        deadline(1.0, doubtful="twice")


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_a_learned_deadline_is_the_quantile(quantile: float) -> None:
    """Of log-normal times, of which those beyond the deadline are never seen."""
    learned = Deadline(quantile)
    draw = np.random.default_rng(0)
    assert learned.seconds == math.inf
    late = []
    for i in range(8000):
        seconds, at_s = float(np.exp(0.3 * draw.standard_normal())), learned.seconds
        if seconds <= at_s:
            learned.note(seconds, at_s, exact=True)
        else:
            learned.note(at_s, at_s, exact=False)
        if i > 500:
            late.append(seconds > at_s)
    assert np.mean(late) == pytest.approx(1.0 - quantile, abs=0.01)


def test_a_learned_deadline_follows_a_slower_model() -> None:
    learned = Deadline(0.9)
    for _ in range(100):
        learned.note(0.01, learned.seconds, exact=True)
    for _ in range(500):
        in_time = learned.seconds >= 0.05
        learned.note(0.05, learned.seconds, exact=in_time)
    assert 0.04 < learned.seconds < 0.06


def test_many_that_are_late_together_move_a_deadline_once() -> None:
    learned = Deadline(0.99)
    for _ in range(20):
        learned.note(0.01, learned.seconds, exact=True)
    at_s = learned.seconds
    for _ in range(64):
        learned.note(at_s, at_s, exact=False)
    assert at_s < learned.seconds < 1.2 * at_s
    for _ in range(1000):  # one after the other: it has an end
        learned.note(learned.seconds, learned.seconds, exact=False)
    assert learned.seconds <= 0.1 + 1e-9


# ---- whom to ask, and when ----


def test_the_usual_time_is_that_of_the_fastest_worker() -> None:
    seen = Seen(0)
    assert seen.usual_s(SHAPE) is None
    for seconds in (0.1, 0.3, 0.2):
        seen.note(SHAPE, 0, seconds)
    assert seen.usual_s(SHAPE) == 0.2
    assert not seen.knows_others(SHAPE)
    seen.note(SHAPE, 1, 0.05)
    assert seen.usual_s(SHAPE) == 0.05
    assert seen.knows_others(SHAPE)
    assert seen.usual_s(shape_of((torch.zeros(2, 4, 5),))) is None


def test_a_new_shape_takes_as_long_as_the_nearest_one() -> None:
    seen = Seen(0)
    for rows, seconds in ((2, 0.1), (10, 0.4)):
        for worker in (0, 1):
            seen.note(shape_of((torch.zeros(rows, 3),)), worker, seconds)
    for rows, wanted in ((1, 0.1), (4, 0.2), (9, 0.4), (20, 0.8)):
        shape = shape_of((torch.zeros(rows, 3),))
        assert seen.usual_s(shape) == pytest.approx(wanted)
        assert seen.knows_others(shape)
    assert seen.usual_s(shape_of((torch.zeros(2, 3).half(),))) is None
    for length in range(1000):  # it forgets the oldest ones
        seen.note(shape_of((torch.zeros(1, length),)), 0, 0.1)
    assert seen.passes(shape_of((torch.zeros(1, 999),))) == 1


def test_the_first_helper_is_asked_past_the_patience() -> None:
    seen = Seen(0)
    hedging = Hedging(seen, 0.5)
    assert hedging.first_s(SHAPE) == 0.0  # nothing is known yet
    seen.note(SHAPE, 0, 0.1)
    assert hedging.first_s(SHAPE) == 0.0  # others may be faster
    seen.note(SHAPE, 1, 0.1)
    assert hedging.first_s(SHAPE) == pytest.approx(0.15)
    assert hedging.again_s(SHAPE) == pytest.approx(0.15)
    for who in (1, 1, 1, 0, 0, 0, 0):
        seen.answered(who)
    assert hedging.first_s(SHAPE) > 0.0
    seen.answered(1)  # half of the last eight
    assert hedging.first_s(SHAPE) == 0.0


def test_short_passes_are_not_late_at_once() -> None:
    seen = Seen(0)
    for worker in (0, 1):
        seen.note(SHAPE, worker, 1e-3)
    assert Hedging(seen, 0.1).first_s(SHAPE) == pytest.approx(2e-3)


def test_a_silent_worker_is_not_asked_for_ever() -> None:
    helpers = Helpers(0, 3)
    asked = [helpers.choose([]) for _ in range(8)]
    assert sorted(asked) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert helpers.choose([]) is None
    helpers.replied(2)
    assert helpers.choose([2]) is None
    assert helpers.choose([1]) == 2
    helpers.gone(2)
    helpers.replied(2)
    assert helpers.choose([]) is None
    assert helpers.waited_for() == [1]


# ---- a query ----


def test_the_first_answer_counts() -> None:
    query = Query(0, (torch.zeros(1),), 1, SHAPE, math.inf)
    ended: list[Query] = []
    query.then = ended.append
    assert not query.done
    assert not query.wait(0)
    assert query.take(answer(1))
    assert not query.take(answer(2))
    assert not query.fail(ValueError())
    assert query.outcome().value == 1
    assert ended == [query]
    assert query.wait(0)


def test_messages_are_read_as_they_were_written() -> None:
    inputs = (torch.arange(6).reshape(2, 3), {"mask": [1, None]})
    for draws in (None, False, True):
        number, told, data = messages.read_ask(messages.ask(7, draws, inputs))
        assert (number, told) == (7, draws)
        found = messages.inputs_of(data)
        assert torch.equal(found[0], inputs[0])
        assert found[1] == inputs[1]
    said = messages.read_reply(messages.reply(3, messages.FAILED, 0.5, "no"))
    assert said == (3, messages.FAILED, 0.5, "no")
    assert messages.read_forget(messages.forget(9)) == 9


def test_counts_are_kept_by_who_answered() -> None:
    counts = Counts()
    for one in (answer(), answer(who=1), answer()._replace(exact=False), None):
        counts.ended(one, 0)
    found = counts.to_dict()
    names = ("exact", "helped", "stand_in", "failed")
    assert [found[name] for name in names] == [1, 1, 1, 1]
    assert found["p50_s"] == 0.01
    assert counts.by_bound[BOUNDS_S.index(0.01)] == 3


# ---- a stand-in ----


class Says:
    threshold = 0.5

    def __init__(self, values: Any, doubts: Any) -> None:
        self.said = values, doubts

    def __call__(self, _: Tensor) -> Any:
        return self.said


def test_a_stand_in_is_trusted_up_to_its_threshold() -> None:
    values = torch.tensor([[1.0], [2.0], [math.nan], [4.0]])
    doubts = torch.tensor([0.5, 0.6, 0.0, math.nan])
    guess = Second(Says(values, doubts)).guess((torch.zeros(4),), 4)
    assert guess is not None
    assert guess.trusted.tolist() == [True, False, False, False]


class Named(NamedTuple):
    logits: Tensor
    labels: list[str]


def test_outputs_are_divided_by_rows_or_not_at_all() -> None:
    values, labels = torch.arange(4.0)[:, None], ["a", "b", "c", "d"]
    one = torch.tensor([1])
    found = rows_of({"x": Named(values, labels), "y": [values.numpy()]}, one, 4)
    assert isinstance(found["x"], Named)
    assert found["x"].logits.tolist() == [[1.0]]
    assert found["x"].labels == ["b"]
    assert found["y"][0].tolist() == [[1.0]]
    for other in (values[None], torch.zeros(()), 3, labels[:3], {"n": 4}, "abcd"):
        with pytest.raises(ConfigError, match="cannot be divided"):
            rows_of(other, one, 4)


@pytest.mark.parametrize(
    ("values", "doubts"),
    [
        (torch.zeros(3, 1), [0.1, 0.1]),
        (torch.zeros(2, 1), [0.1]),
        (torch.zeros(2, 1), [0.1, -0.1]),
        (torch.zeros(2, 1), ["a", "b"]),
        (torch.zeros(()), [0.1, 0.1]),
    ],
)
def test_what_a_stand_in_says_in_bad_order_is_not_said(
    values: Any, doubts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    second = Second(Says(values, doubts))
    for _ in range(3):
        assert second.guess((torch.zeros(2),), 2) is None
    assert second.errors == 3
    assert len(caplog.records) == 1  # each reason once


# ---- hands and post ----


class Slow:
    """In place of a model: each pass has boundaries until it is let go."""

    draws = False

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[Any] = []

    def compute(self, inputs: Any, visitor: Any, number: Any, _: Any) -> Any:
        self.begun.append(number)
        while not self.go.wait(1e-3):
            visitor.visit()
        return inputs


class Told:
    """Keeps what hands say."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def computed(self, query: Query, value: Any, _: float) -> None:
        self.said.append(("computed", query.number))
        query.take(answer(value))

    def helped(self, ask: Ask, *_: Any) -> None:
        self.said.append(("helped", ask.number))

    def not_helped(self, ask: Ask, _: str) -> None:
        self.said.append(("not helped", ask.number))

    def inputs_of(self, ask: Ask) -> tuple[Any, ...]:
        return (ask.data,)


def test_own_queries_come_before_those_of_others() -> None:
    model, told = Slow(), Told()
    hands = Hands(model, told, 0, None)  # type: ignore[arg-type]
    hands.start()
    for number in (1, 2, 3):
        hands.help(Ask(1, number, False, b""))
    until(lambda: model.begun == [(1, 1)])
    hands.forget(1, 2)  # while it waits
    own = Query(0, (5,), 1, SHAPE, math.inf)
    hands.add(own)
    until(lambda: model.begun[1:] == [(0, 0)])  # the other one's pass is left
    assert hands.abandoned == 1
    model.go.set()
    assert own.wait(20)
    until(lambda: len(told.said) == 4)
    wanted = [("computed", 0), ("helped", 1), ("not helped", 2), ("helped", 3)]
    assert told.said == wanted
    assert hands.stop(20)


def test_a_pass_that_nobody_needs_is_left() -> None:
    model, told = Slow(), Told()
    hands = Hands(model, told, 0, None)  # type: ignore[arg-type]
    hands.start()
    own = Query(0, (5,), 1, SHAPE, math.inf)
    hands.add(own)
    until(lambda: len(model.begun) == 1)
    assert own.take(answer())
    hands.help(Ask(1, 4, False, b""))
    until(lambda: len(model.begun) == 2)
    hands.forget(1, 4)
    until(lambda: told.said == [("not helped", 4)])
    assert hands.abandoned == 2
    assert hands.stop(20)


class Heard:
    """Keeps what a post hears; raises at the first message."""

    def __init__(self) -> None:
        self.came: list[tuple[int, int, bytes]] = []

    def hear(self, source: int, kind: int, data: bytes) -> None:
        self.came.append((source, kind, data))
        if len(self.came) == 1:
            raise ValueError("made up")

    def lost(self, *_: Any) -> None:
        raise AssertionError

    def look(self) -> bool:
        return False


def test_posts_hear_one_another_after_an_error_too() -> None:
    hub = _engine.LocalHub(2, 200, 1)
    heard = [Heard(), Heard()]
    posts = [Post(_engine.local_transport(hub, r), heard[r]) for r in (0, 1)]
    for post in posts:
        post.start()
    for size in (0, 5, 100_000):
        posts[0].send(1, messages.ASK, bytes(size))
    posts[1].send(0, messages.FORGET, b"abc")
    until(lambda: len(heard[1].came) == 3 and len(heard[0].came) == 1)
    assert [len(data) for _, _, data in heard[1].came] == [0, 5, 100_000]
    assert heard[0].came == [(1, messages.FORGET, b"abc")]
    assert all(post.stop(20) for post in posts)
    assert not any(post.failure for post in posts)
