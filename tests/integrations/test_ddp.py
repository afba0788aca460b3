"""DDP with codedgrad's hook leaves the gradients of DDP without it."""

from __future__ import annotations

import math
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import codedgrad
from codedgrad import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

several = pytest.mark.skipif("not codedgrad.size() > 1", reason="one worker")


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A process group of gloo over the job's workers, as a script makes it."""
    port = 0
    if codedgrad.rank() == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    port = codedgrad.broadcast_object(port)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=codedgrad.rank(),
        world_size=codedgrad.size(),
    )
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    """Whole numbers in, small whole numbers as weights: sums are exact."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 300), nn.Linear(300, 2)
        )
        for p in self.layers.parameters():
            p.data = torch.randint(-1, 2, p.shape).to(p.dtype)
        self.other = nn.Linear(6, 2)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = unused

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out if self.unused else out + self.other(x)


def batch(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + codedgrad.rank())
    return torch.randint(-2, 3, (4, 6), generator=generator).to(dtype)


def gradients(
    how: dict[str, Any],
    keywords: dict[str, Any] | None,
    *,
    dtype: torch.dtype = torch.float32,
    unused: bool = False,
) -> list[Any]:
    """Those of three steps, of which the second has two backwards."""
    model = DistributedDataParallel(Net(unused).to(dtype), **how)
    exchange = None
    if keywords is not None:
        exchange = codedgrad.ddp.register(model, **keywords)
    found = []
    for step in range(3):
        model.zero_grad()
        if step == 1 and not how.get("static_graph"):
            with model.no_sync():
                model(batch(7, dtype)).sum().backward()
        model(batch(step, dtype)).sum().backward()
        found += [
            None if p.grad is None else p.grad.clone() for p in model.parameters()
        ]
    if exchange is not None:
        assert exchange.report.step == 2
        assert len(exchange.record.reports) == 3
        exchange.close()
        exchange.close()
    return found


def close(got: Tensor, want: Tensor, rounding: float) -> None:
    """Up to a rounding of the largest, since some sums cancel out."""
    largest = want.abs().max().item()
    torch.testing.assert_close(got, want, rtol=rounding, atol=rounding * largest)


@pytest.mark.parametrize(
    ("how", "keywords"),
    [
        ({}, {}),
        ({"gradient_as_bucket_view": True}, {}),
        ({"static_graph": True}, {}),
        ({"bucket_cap_mb": 0.01}, {"bucket_mb": 0.05}),
        ({"bucket_cap_mb": 0.1}, {"wire": "bfloat16"}),
        ({"find_unused_parameters": True}, {"window": 4}),
    ],
    ids=str,
)
def test_gradients_are_those_of_ddp(how: Any, keywords: Any) -> None:
    unused = "find_unused_parameters" in how
    want = gradients(how, None, unused=unused)
    got = gradients(how, keywords, unused=unused)
    exact = codedgrad.size() in (1, 2, 4) and "wire" not in keywords
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, 2e-2 if "wire" in keywords else 1e-6)
            assert torch.equal(a, b) or not exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    want = gradients({}, None, dtype=dtype)
    got = gradients({}, {}, dtype=dtype)
    for a, b in zip(got, want, strict=True):
        if a is not None:
            assert a.dtype == dtype
            close(a, b, 3e-2 if dtype == torch.bfloat16 else 1e-12)


def test_training_ends_with_the_same_parameters_everywhere() -> None:
    torch.manual_seed(codedgrad.rank())  # DDP takes worker 0's
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    with closing(codedgrad.ddp.register(model)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for step in range(4):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    every = codedgrad.allgather(flat[None])
    assert torch.equal(every, every[:1].expand_as(every))


@several
def test_nobody_waits_for_one_that_is_late_now_and_then() -> None:
    model = DistributedDataParallel(nn.Linear(6, 2))
    policy = codedgrad.approximate(math.inf)
    with closing(codedgrad.ddp.register(model, policy=policy, window=16)) as exchange:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        begin = time.monotonic()
        for step in range(12):
            late = codedgrad.rank() == 1 and step == 2
            time.sleep(1.0 if late else 0.01)
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            optimizer.step()
        spent = time.monotonic() - begin
        settled = sum(r.settled for r in exchange.record.reports)
    every = codedgrad.allgather_object([spent, settled])
    assert sum(one[1] for one in every) > 0
    assert all((one[0] > 0.9) == (w == 1) for w, one in enumerate(every))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    gathered = codedgrad.allgather(flat[None])
    assert torch.equal(gathered, gathered[:1].expand_as(gathered))


@pytest.mark.parametrize(
    ("how", "module", "words"),
    [
        ({"find_unused_parameters": True}, nn.Linear(2, 2), "find_unused_parameters"),
        ({}, nn.BatchNorm1d(2), "broadcast_buffers=False"),
    ],
)
def test_what_waits_for_all_by_itself(how: Any, module: Any, words: str) -> None:
    from codedgrad.integrations import ddp
    from codedgrad.job import runtime

    model = DistributedDataParallel(module, **how)
    with pytest.raises(ConfigError, match=words):
        ddp._check(runtime.current(), model, codedgrad.approximate())
    with pytest.raises(ConfigError, match="wanted a DistributedDataParallel"):
        ddp._check(runtime.current(), module, None)


@several
def test_a_wrapper_s_parameters_have_no_second_exchange() -> None:
    from codedgrad.step.strangers import refuse_wrapped_parameters

    inner = nn.Linear(6, 2)
    model = DistributedDataParallel(inner)
    with pytest.raises(ConfigError, match="'weight' is exchanged already, by a Distr"):
        refuse_wrapped_parameters(list(inner.named_parameters()))
    refuse_wrapped_parameters(list(nn.Linear(6, 2).named_parameters()))
    del model  # it is part of cycles
    refuse_wrapped_parameters(list(inner.named_parameters()))


def test_a_closed_exchange_says_so() -> None:
    model = DistributedDataParallel(nn.Linear(6, 2))
    exchange = codedgrad.ddp.register(model)
    exchange.close()
    with pytest.raises(ConfigError, match="is closed"):
        exchange._begin()
