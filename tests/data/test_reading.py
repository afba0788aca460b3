"""Reading samples: in which process, with which numbers, and what cannot be read."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from codedgrad import ConfigError, DataError, ShardSampler
from codedgrad.data.reading import _rows


class Listed(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(i)]), i


class Broken(Listed):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i == 6:
            raise OSError("no such file: six.jpg")
        return super().__getitem__(i)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_sample_that_cannot_be_read_is_named(processes: int) -> None:
    before = set(multiprocessing.active_children())
    sampler = ShardSampler(Broken(), 8, shuffle=False, num_workers=processes)
    step = next(steps := sampler.steps(2, own=[(0, 1), (1, 2)]))
    step.fetch(0)
    with pytest.raises(DataError, match=r"sample 6 of .* OSError: no such file") as e:
        step.fetch(1)
    assert ("Traceback" in str(e.value)) == (processes > 0)
    assert set(multiprocessing.active_children()) <= before  # nobody has to wait later
    steps.close()


def test_reading_ends_between_two_samples() -> None:
    class Enough(Exception):
        pass

    read: list[int] = []

    class Noted(Listed):
        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            read.append(i)
            return super().__getitem__(i)

    def between() -> None:
        if len(read) == 2:
            raise Enough

    step = next(iter(ShardSampler(Noted(), 8, shuffle=False).steps(2)))
    with pytest.raises(Enough):
        step.fetch(0, between=between)
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_workers": -1}, "0 or more, got -1"),
        ({"num_workers": 2, "prefetch_factor": 0}, "at least 1, got 0"),
        ({"pin_memory": True}, "pin_memory: .* set num_workers"),
        ({"prefetch_factor": 4, "worker_init_fn": print}, "worker_init_fn: .* none"),
    ],
)
def test_words_for_loaders_that_do_not_fit(words: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardSampler(Listed(), 8, **words)


def test_unknown_words_for_loaders() -> None:
    with pytest.raises(TypeError, match="workers"):
        ShardSampler(Listed(), 8, workers=2)  # type: ignore[call-arg]


def test_the_generators_are_as_before_reading() -> None:
    class Drawing(Listed):
        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return torch.rand(1) + float(np.random.rand()), i  # noqa: NPY002

    def draws() -> tuple[float, float]:
        return float(torch.rand(())), float(np.random.rand())  # noqa: NPY002

    step = next(iter(ShardSampler(Drawing(), 8, seed=4).steps(2)))
    found = []
    for reads in (0, 1, 2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        batches = [step.fetch(1)[0].tolist() for _ in range(reads)]
        assert len({str(b) for b in batches}) <= 1
        found.append(draws())
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "t",
    [
        torch.randn(9, 3),
        torch.randn(9, 2, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(2, 9).T,
        torch.randn(1, 3).expand(9, 3),
        torch.randn(9, 3, dtype=torch.complex64).conj(),
        torch.randn(9, requires_grad=True),
        torch.randn(9, 3).to(torch.bfloat16),
        torch.arange(9).to(torch.uint16),
        torch.arange(9) > 4,
        torch.ones(9, 0),
    ],
)
def test_rows_are_those_of_indexing(t: torch.Tensor) -> None:
    index = torch.tensor([4, 0, 8, 4])
    got, want = _rows(t, index), t[index]
    assert got.dtype == want.dtype
    assert got.requires_grad == want.requires_grad
    assert torch.equal(got, want)
    assert got.stride() == want.stride()
