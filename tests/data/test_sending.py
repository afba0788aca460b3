"""Loader processes that cannot start, or cannot send what they read, say so at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import UserDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from codedgrad import DataError, ShardSampler
from codedgrad.data.sending import check_sendable, remedy_of

Pair = namedtuple("Pair", "x y")


class Objects(Dataset[Any]):
    """Samples with an object that cannot be pickled."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return index, (lambda: index)


def first_batch(**words: Any) -> None:
    sampler = ShardSampler(Objects(), 8, collate_fn=list, **words)
    step = next(steps := sampler.steps(2, own=[(0, 1)]))
    try:
        step.fetch(0)
    finally:
        steps.close()


@pytest.mark.timeout(30)
def test_a_sample_that_cannot_be_pickled() -> None:
    with pytest.raises(DataError, match=r"cannot send .* function cannot be pickled"):
        first_batch(num_workers=1)
    first_batch()


def test_a_dataset_that_cannot_be_pickled() -> None:
    """Where processes are not forked; torch then waits 5 s for those that failed."""
    told = remedy_of(AttributeError("Can't pickle local object"), starting=True)
    assert "must be picklable where processes are not forked" in told
    assert remedy_of(AttributeError("Can't pickle local object")) == ""


@pytest.mark.parametrize(
    "value",
    [
        (torch.ones(2), 3, "a", None, b"", 1.5),
        {"a": [np.ones(2), np.float32(1)]},
        UserDict(a=torch.ones(2)),
        Pair(1, {2, 3}),
        np.array(["a", None], dtype=object),
        Path("a"),
    ],
)
def test_what_can_be_sent(value: Any) -> None:
    check_sendable(value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([1, {"a": lambda: 1}], "function"),
        (UserDict(a=(x for x in "a")), "generator"),
        (np.array([lambda: 1], dtype=object), "ndarray"),
        (Pair(1, open), ""),
    ],
)
def test_what_cannot_be_sent(value: Any, named: str) -> None:
    if not named:
        check_sendable(value)
        return
    with pytest.raises(DataError, match=f"{named} cannot be pickled"):
        check_sendable(value)


JOB = """
import torch, codedgrad

class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.zeros(100_000)

steps = codedgrad.ShardSampler(Large(), 32, num_workers=1).steps(1, own=[(0, 1)])
next(steps).fetch(0)
"""


@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_without_shared_memory(options: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/dev/shm"]
    alone = ["unshare", "-m", "sh", "-c", '"$@"', "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, *mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespaces here")
    script = f"{' '.join(mount)} && exec {sys.executable} -c '{JOB}'"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "give it more (docker run --shm-size" in done.stderr, done.stderr
