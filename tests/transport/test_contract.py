"""Every transport keeps the contract of csrc/transport/transport.h."""

from __future__ import annotations

import functools

import pytest
from transport.contract import CASES
from transport.transports import TRANSPORTS


@functools.cache
def outcome(transport: str, ranks: int) -> dict[str, str]:
    """By case, what went wrong."""
    return TRANSPORTS[transport](ranks)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_contract(transport: str, ranks: int, case: str) -> None:
    assert outcome(transport, ranks)[case] == ""


def test_a_rank_that_is_not_there_is_refused() -> None:
    from codedgrad.job import _engine

    with pytest.raises(RuntimeError, match="rank 2 is not in a hub of 2"):
        _engine.local_transport(_engine.LocalHub(2), 2)
