"""What of a sample is looked at, and that nobody notices the reading."""

from __future__ import annotations

import random
from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from codedgrad import DataError
from codedgrad.step.content import content_digest, in_memory, pieces

Pair = namedtuple("Pair", "x y")
CHANGES: list[tuple[Any, Any]] = [
    (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])),
    (np.arange(3), np.arange(3) + 1),
    (np.float32(1), np.float32(2)),
    (1, 2),
    (1, 1.0),
    ("text", "test"),
    (b"1", b"2"),
    (None, 0),
    (True, False),
    ([1, [2, 3]], [1, [2, 4]]),
    ((1, 2), [1, 2]),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    (UserDict(a=1), UserDict(a=2)),
    (Pair(1, 2), Pair(1, 3)),
    ({"x": (torch.zeros(2), ["a"])}, {"x": (torch.zeros(2), ["b"])}),
]


@pytest.mark.parametrize(("one", "other"), CHANGES, ids=str)
def test_what_differs_is_seen(one: Any, other: Any) -> None:
    assert content_digest([one] * 4, 0, 0) == content_digest([one] * 4, 0, 0)
    assert content_digest([one] * 4, 0, 0) != content_digest([other] * 4, 0, 0)


def test_folders_and_objects_do_not_count() -> None:
    assert list(pieces("/mnt/a/cat.png")) == list(pieces("D:\\data\\cat.png"))
    assert list(pieces(object())) == list(pieces(object()))


class Drawn:
    """Augmentation by every generator that a pass seeds."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        return torch.rand(2), np.random.rand(), random.random(), index  # noqa: NPY002


class Own(Drawn):
    """Random numbers that no pass seeds."""

    def __init__(self) -> None:
        self.draw = random.Random()

    def __getitem__(self, index: int) -> Any:
        return self.draw.random()


class Broken(Drawn):
    def __getitem__(self, index: int) -> Any:
        raise KeyError(index)


def test_generators_are_as_before() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    want = Drawn()[0][:3]
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    assert content_digest(Drawn(), 3, 1) == content_digest(Drawn(), 3, 1) is not None
    got = Drawn()[0][:3]
    assert torch.equal(got[0], want[0])
    assert got[1:] == want[1:]
    assert content_digest(Drawn(), 3, 1) != content_digest(Drawn(), 3, 2)


def test_what_is_not_deterministic_has_none() -> None:
    assert content_digest(Own(), 0, 0) is None


def test_what_cannot_be_read_is_told_so() -> None:
    with pytest.raises(DataError, match=r"sample \d+ could not be read: "):
        content_digest(Broken(), 0, 0)


def test_tensors_count_as_a_whole_if_small() -> None:
    x = torch.zeros(1000, 4)
    before = content_digest((x,), 0, 0)
    for dataset in ((x,), TensorDataset(x)):
        x[777, 3] += 1
        assert content_digest(dataset, 0, 0) != before
        x[777, 3] -= 1
        assert content_digest(dataset, 0, 0) == before


def test_indices_and_short_lists_count_as_a_whole() -> None:
    rows = [(torch.full((2,), float(i)), i) for i in range(100)]
    changed = [(x, y + (y == 77)) for x, y in rows]
    assert content_digest(rows, 0, 0) != content_digest(changed, 0, 0)
    for data in (rows, TensorDataset(torch.arange(100.0))):
        one, other = list(range(100)), [*range(99), 98]
        first = content_digest(Subset(data, one), 0, 0)
        assert first == content_digest(Subset(data, torch.tensor(one)), 0, 0)
        assert first != content_digest(Subset(data, other), 0, 0)


def test_what_is_in_memory() -> None:
    tensors = TensorDataset(torch.zeros(4))
    assert all(map(in_memory, [(torch.zeros(4),), tensors, [1], Subset(tensors, [0])]))
    assert not in_memory(Drawn())
    assert not in_memory(Subset(Drawn(), [0]))
