"""Who cuts a shard into pieces."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from codedgrad.settings import RunSettings
from torch import nn

from codedgrad import codes
from codedgrad.codes.whole import helps_in_pieces
from codedgrad.step.pieces import PieceCost, code_of, code_of_state, own_is_whole

CODE = codes.spread(5, micro=4, copies=2)
PLAIN = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
NORM = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
LAZY = nn.Sequential(nn.LazyBatchNorm2d())


@pytest.mark.parametrize(
    ("model", "settings", "whole", "in_shards"),
    [
        (PLAIN, {}, True, False),
        (NORM, {}, True, True),
        (LAZY, {}, True, True),
        (NORM.eval(), {}, True, True),
        (NORM, {"pieces": True}, True, False),
        (PLAIN, {"pieces": False}, True, True),
        (NORM, {"same_bits": True}, False, False),
        (NORM, {"same_bits": True, "pieces": False}, True, True),
    ],
)
def test_the_choices(
    model: nn.Module, settings: Any, whole: bool, in_shards: bool
) -> None:
    run = RunSettings(**settings)
    assert own_is_whole(run) == whole
    code = code_of(CODE, [model], run)
    assert (code != CODE) == in_shards
    assert ("help=shards" in code.describe()) == in_shards


def test_the_cost_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    cost = PieceCost()
    with caplog.at_level(logging.INFO, logger="codedgrad"):
        for seconds in (0.5, 0.3, 0.3, 0.1, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9):
            cost.add(seconds, 1.0, 1.0)  # a whole shard says nothing
            cost.add(seconds, 0.25, 0.0)  # nor does the time before the first pass
            cost.add(seconds, 0.25, 1.0)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "1000.0 ms whole; 4 pieces of it take 1.20 x" in said


def test_state_that_passes_change_has_helpers_take_shards() -> None:
    code = codes.spread(4, micro=4)
    whole, pieces = RunSettings(), RunSettings(pieces=True)
    assert code_of_state(code, [], whole) is code
    assert not helps_in_pieces(code_of_state(code, ["centre"], whole))
    assert code_of_state(code, ["centre"], pieces) is code
    assert code_of_state(code, ["centre"], RunSettings(same_bits=True)) is code
