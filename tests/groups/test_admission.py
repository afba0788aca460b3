"""What ends an entry, and not the job: a limit on time, and a full disk."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from codedgrad.groups import admission
from codedgrad.job import rejoin
from codedgrad.job.rejoin import Entry
from codedgrad.job.sockets.desk import Asker


def test_slow_packing_has_an_end() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="raise codedgrad"):
        admission._result_by(begin + 0.1, lambda: time.sleep(2) or b"")
    assert time.monotonic() - begin < 1.5
    assert admission._result_by(time.monotonic() + 20, lambda: b"x") == b"x"
    assert rejoin.within(5) == 2.5


def test_an_answer_that_cannot_be_written_is_a_reason() -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    world: Any = SimpleNamespace(desk=SimpleNamespace(answer=full))
    job: Any = SimpleNamespace(rank=0, size=2)
    nothing: Any = None
    one = admission.Admission(nothing, job, world)
    entry = Entry(
        **Asker(1, 1, 1)._asdict(), step=4, ranks=[0, 1], donor=0, link=None, within=1.0
    )
    found = one._connect(nothing, Asker(1, 1, 1), entry)
    assert found == (None, "no space left")
