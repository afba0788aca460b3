"""Who cuts a shard into pieces."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from codedgrad import codes
from codedgrad.settings import RunSettings
from codedgrad.step.pieces import code_of, own_is_whole

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
    code = code_of(CODE, model, run)
    assert (code != CODE) == in_shards
    assert ("help=shards" in code.describe()) == in_shards
