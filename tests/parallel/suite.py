"""What the tests share that are named like those of Horovod's suite for torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import codedgrad.hvd as hvd
from codedgrad import ConfigError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = [torch.uint8, torch.int8, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.float32, torch.float64]
SHAPES: list[tuple[int, ...]] = [(5,), (4, 3), (2, 3, 4)]

# An optimizer that is refused ends a job of several workers.
alone = pytest.mark.skipif("hvd.size() > 1", reason="several workers")
several = pytest.mark.skipif("not hvd.size() > 1", reason="one worker")


def values(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Small whole numbers of every worker, [workers, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 5, (hvd.size(), *shape), generator=generator)
    return numbers.to(dtype)


def mine(of_all: Tensor, *, gradient: bool = False) -> Tensor:
    return of_all[hvd.rank()].clone().requires_grad_(gradient)


def total(of_all: Tensor) -> Tensor:
    return of_all.sum(0, dtype=of_all.dtype)


def mean(of_all: Tensor) -> Tensor:
    if of_all.dtype.is_floating_point:
        return total(of_all) / hvd.size()
    return torch.div(total(of_all), hvd.size(), rounding_mode="trunc")


def equal(got: Any, want: Tensor) -> None:
    """Whole numbers, so that no sum is rounded; a mean may be, once."""
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-3, atol=0.0)


def refused(call: Callable[[], Any], text: str) -> None:
    """On every worker, which can go on afterwards."""
    with pytest.raises((ConfigError, MismatchError), match=text):
        call()
    hvd.barrier()


def refuses_a_process_set(operation: Callable[..., Any], *args: Any) -> None:
    """There are none, neither to be made nor given."""
    refused(lambda: hvd.add_process_set([0]), "counterpart of add_process_set")
    refused(lambda: hvd.ProcessSet([0]), "local_group")
    refused(lambda: operation(*args, process_set=object()), "process set")
    operation(*args, process_set=hvd.global_process_set)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def distributed(model: nn.Module, **how: Any) -> Any:
    how.setdefault("named_parameters", model.named_parameters())
    return hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **how)


def step(optimizer: Any, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def same(model: nn.Module) -> None:
    """The parameters are those of worker 0, everywhere."""
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    every = hvd.allgather(flat[None])
    assert torch.equal(every, every[:1].expand_as(every))
