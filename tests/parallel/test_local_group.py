"""Groups of processes that are one worker of the code: the bits stay those of it."""

from __future__ import annotations

import pytest
from training import coded, everywhere, plain

import codedgrad
from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.group_step import division
from codedgrad.local_group import partition

STEPS = 40
# By group: whole ones are late, now and then, and one process of each once.
STORM = (
    "random:seed=4,probability=0.3,factor=5;"
    "random:seed=9,probability=0.1,seconds=0.02"
)


def group_size() -> int:
    """2 where that divides the processes, else all of them."""
    n = codedgrad.size()
    return 2 if n % 2 == 0 else n


def groups() -> int:
    return codedgrad.size() // group_size()


def agrees_with_one_process(
    code: codes.Code, steps: int = STEPS, **settings: object
) -> None:
    """Calm and stormy runs in groups have the bits of `plain`, on every process."""
    spec = group_size()
    calm = coded(code, steps, local_group=spec, **settings)
    stormy = coded(code, steps, local_group=spec, faults=STORM, **settings)
    assert calm == stormy
    assert len(set(everywhere(calm[0]))) == 1
    if codedgrad.rank() == 0:
        assert calm == plain(code.tree, code.parts, steps)


@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("overlap", [True, False])
def test_groups_change_no_bit(bucket_mb: float | None, overlap: bool) -> None:
    code = codes.spread(groups(), micro=8)
    agrees_with_one_process(code, bucket_mb=bucket_mb, overlap=overlap)
