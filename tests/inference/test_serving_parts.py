"""Parts of a predictor by themselves: counts, the post's asks, devices, batches."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codedgrad.errors import OverloadError
from codedgrad.inference.front.batcher import Batcher, Settings
from codedgrad.inference.serving import messages
from codedgrad.inference.serving.bureau import Bureau
from codedgrad.inference.serving.counts import Counts
from codedgrad.inference.serving.query import Answer
from codedgrad.inference.serving.served import moved


def test_counts_of_several_threads_lose_nothing() -> None:
    counts = Counts()
    threads = [
        threading.Thread(target=lambda: [counts.add("asked") for _ in range(5000)])
        for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert counts.to_dict()["asked"] == 20_000


def test_an_ask_that_cannot_be_read_gets_its_reply() -> None:
    sent: list[Any] = []
    bureau = object.__new__(Bureau)
    post = SimpleNamespace(send=lambda *message: sent.append(message))
    bureau._post = post  # type: ignore[assignment]
    for data in (b"", messages.ask(1, None, ())[:8] + b"\x07"):
        with pytest.raises(Exception, match=r"unpack|7"):
            bureau.hear(2, messages.ASK, data)
    assert [(dest, kind) for dest, kind, _ in sent] == [(2, messages.REPLY)] * 2
    for _, _, data in sent:
        reply = messages.read_reply(data)
        assert (reply.number, reply.status) == (messages.UNREADABLE, messages.FAILED)
        assert "cannot be read" in reply.value


def test_what_was_on_the_host_stays_there() -> None:
    value = {"a": [torch.ones(1), 3], "b": torch.ones(2)}
    found = moved(value, torch.device("meta"), iter([True, False]))
    assert found["a"][0].device.type == "cpu"
    assert found["a"][1] == 3
    assert found["b"].device.type == "meta"


def test_what_a_batcher_has_taken_waits_for_a_place() -> None:
    class Full:
        refused = 0

        def submit(self, batch: torch.Tensor) -> Any:
            if self.refused < 5:
                self.refused += 1
                raise OverloadError("no place")
            return batch

        def parts(self, query: Any) -> Any:
            rows = len(query)
            answer = Answer(query, True, torch.zeros(rows), 0, 0.0)
            return [(torch.arange(rows), answer)]

    full, told = Full(), list[Any]()
    batcher = Batcher(full, Settings())  # type: ignore[arg-type]
    batcher.put([torch.ones(2)], lambda _, outcome: told.append(outcome))
    end = time.monotonic() + 20
    while not told and time.monotonic() < end:
        time.sleep(1e-3)
    batcher.stop()
    assert full.refused == 5
    assert isinstance(told[0], Answer)
