"""Every transport keeps the contract of csrc/transport/transport.h."""

from __future__ import annotations

import functools

import pytest
from transport import transports
from transport.contract import CASES

from codedgrad.job import _engine

outcome = functools.cache(transports.outcome)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", [*transports.THREADS, *transports.PROCESSES])
def test_contract(name: str, ranks: int, case: str) -> None:
    assert outcome(name, ranks)[case] == ""


def test_a_rank_that_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeError, match="rank 2 is not in a hub of 2"):
        _engine.local_transport(_engine.LocalHub(2), 2)
