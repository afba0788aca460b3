"""The training thread's questions do not wait for what takes the engine long."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 5.0


@pytest.fixture
def engines() -> Iterator[list[Any]]:
    made: list[Any] = []
    yield made
    for engine in made:
        engine.stop(0.0)


# Memory may be freed later than its device, in a garbage collection, and calls these.
_FOR_EVER: list[Any] = []


class SlowPins:
    """A device that pins memory only after somebody else has got an answer."""

    def __init__(self, answer: int = 0) -> None:
        self.pinning, self.asked = threading.Event(), threading.Event()
        self.waits: list[bool] = []
        i, p, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
        self._keep = {
            "set_device": ctypes.CFUNCTYPE(i, i)(lambda _: answer),
            "pin": ctypes.CFUNCTYPE(i, p, size, ctypes.c_uint)(self._pin),
            "unpin": ctypes.CFUNCTYPE(i, p)(lambda _: 0),
            "query": ctypes.CFUNCTYPE(i, p)(lambda _: 0),
            "take_error": ctypes.CFUNCTYPE(i)(lambda: 0),
        }
        _FOR_EVER.append(self._keep)
        self._main = threading.get_ident()

    def calls(self) -> Any:
        addresses = {
            n: ctypes.cast(f, ctypes.c_void_p).value for n, f in self._keep.items()
        }
        nothing = dict.fromkeys(("allocate", "release", "start_sum", "sum_done"), 0)
        return _engine.DeviceCalls(
            device=2, not_ready=600, pin_flags=0, **addresses, **nothing
        )

    def _pin(self, _place: int, _size: int, _flags: int) -> int:
        if threading.get_ident() != self._main:
            self.pinning.set()
            self.waits.append(self.asked.wait(LIMIT_S))
        return 0


def test_memory_is_pinned_while_questions_are_answered(engines: list[Any]) -> None:
    """Both for a row that comes and for the sum."""
    device, code = SlowPins(), codes.uncoded(2)
    hub = _engine.LocalHub(2)
    engines += [_engine.Engine.over_local(hub, rank) for rank in range(2)]
    engines[1].bind_device(device.calls())
    tree = code.tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    exchanges = [
        _engine.Exchange(
            engine,
            _engine.SessionSettings(
                plan=plan, bucket_starts=[0, 64], memory="pinned" if rank else "host"
            ),
        )
        for rank, engine in enumerate(engines)
    ]
    for rank, exchange in enumerate(exchanges):
        assert exchange.begin(0, LIMIT_S)[0]
        data = exchange.acquire()
        np.frombuffer(data, np.float32)[:] = rank + 1
        exchange.post(0, code.row_node(rank, 0), data)
    assert device.pinning.wait(LIMIT_S)
    exchanges[1].has(0, 0)  # the engine's thread is pinning now
    device.asked.set()
    assert exchanges[1].wait(0, LIMIT_S)
    got = np.frombuffer(exchanges[1].take(0), np.float32)
    assert (got == 3.0).all()
    assert device.waits
    assert all(device.waits)


def test_a_device_that_cannot_be_chosen_is_told(engines: list[Any]) -> None:
    engines.append(_engine.Engine.over_local(_engine.LocalHub(1), 0))
    device = SlowPins(answer=101)
    with pytest.raises(RuntimeError, match=r"answered 101 when .* chose device 2"):
        engines[0].bind_device(device.calls())


def test_a_long_search_for_a_cover_holds_no_question_up(engines: list[Any]) -> None:
    rows, parts = 900, 300
    matrix = np.random.default_rng(1).standard_normal((rows, parts))
    engines.append(_engine.Engine.over_local(_engine.LocalHub(1), 0))
    settings = _engine.SessionSettings(
        plan=_engine.linear_plan(matrix, parts), bucket_starts=[0, 16], window=4
    )
    exchange = _engine.Exchange(engines[0], settings)
    assert exchange.begin(0, LIMIT_S)[0]
    data = exchange.acquire()
    np.frombuffer(data, np.float32)[:] = 0.0
    for row in range(parts):  # as many as span the parts, so the last one covers
        exchange.post(0, row, data)
    begin = time.monotonic()
    longest = 0.0
    while not exchange.done(0):
        asked = time.monotonic()
        exchange.has(0, rows - 1)
        longest = max(longest, time.monotonic() - asked)
        time.sleep(1e-4)
        assert asked - begin < 12 * LIMIT_S
    took = time.monotonic() - begin
    assert took > 0.05, "too small an example to tell"
    assert longest < 0.3 * took
