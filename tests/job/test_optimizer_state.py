"""What of an optimizer's state travels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from codedgrad.job import broadcast
from codedgrad.job.broadcast import _plain

NUMBERS = [
    np.float32(0.1),
    np.float64(0.1),
    np.int64(3),
    np.bool_(True),
    np.sqrt(2),
    np.array(0.5),
    np.arange(3.0),
    (np.float64(0.9), np.float32(0.999)),
    [np.int32(1)],
    {"inner": np.float16(0.5)},
    None,
    "text",
    0.25,
]


@pytest.mark.parametrize("value", NUMBERS, ids=str)
def test_numbers_of_numpy_become_plain_ones(value: object) -> None:
    file = io.BytesIO()
    torch.save(_plain(value), file)
    file.seek(0)
    back = torch.load(file, weights_only=True)
    leaves = torch.utils._pytree.tree_leaves
    flat, given = leaves(back), leaves(value)
    for ours, theirs in zip(flat, given, strict=True):
        assert not isinstance(ours, np.generic | np.ndarray)
        assert np.array_equal(ours, theirs)


def test_an_optimizer_with_numbers_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root computes with the types that the others get."""
    sent: list[torch.Tensor] = []

    class Job:
        rank, size, outside = 0, 1, ""

        def gather(self, data: bytes, _occasion: str) -> list[bytes]:
            return [data]

    monkeypatch.setattr(broadcast, "current", Job)
    monkeypatch.setattr(
        broadcast, "broadcast_bytes", lambda _job, flat, *_rest: sent.append(flat)
    )
    model = torch.nn.Linear(4, 1)
    rate = np.float32(0.1)
    betas = (np.float64(0.9), np.float64(0.99))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=betas)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    broadcast.broadcast_optimizer_state(optimizer)
    theirs = torch.load(io.BytesIO(sent[0].numpy().tobytes()), weights_only=True)
    for group in (optimizer.param_groups[0], theirs["param_groups"][0]):
        assert type(group["lr"]) is float
        assert group["lr"] == float(rate)
        assert [type(b) for b in group["betas"]] == [float, float]
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
