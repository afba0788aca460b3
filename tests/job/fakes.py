"""A job in one process, whose engine says what a test wants it to say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from codedgrad.job.place import Place
from codedgrad.job.runtime import Runtime


def fake_runtime(
    size: int = 3,
    *,
    rank: int = 0,
    channel: Any = None,
    timeout_s: float = 10.0,
    **engine: Any,
) -> Runtime:
    """The runtime of a worker; what it tells the others is in `engine.said`."""
    said: list[str] = []
    usual = {
        "failed": False,
        "failure": "",
        "departed": [],
        "announced": dict,
        "lost": dict,
        "fail": said.append,
        "said": said,
    }
    return Runtime(
        place=Place(rank, size, rank, size),
        channel=channel,
        engine=SimpleNamespace(**(usual | engine)),
        timeout_s=timeout_s,
    )
