"""Optimizers and their states in loops that were written for Horovod."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from parallel.dropin import same_everywhere
from torch import Tensor, nn

import codedgrad.hvd as hvd

several = pytest.mark.skipif("not hvd.size() > 1", reason="one worker")

# ---- state ----

OPTIMIZERS: list[Any] = [
    (name, cls)
    for name, cls in sorted(vars(torch.optim).items())
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", "Muon")
]


def made(cls: Any, of: nn.Module) -> torch.optim.Optimizer:
    how = {"momentum": 0.5} if cls in (torch.optim.SGD, torch.optim.RMSprop) else {}
    return cls(of.parameters(), lr=0.1 / (1 + hvd.rank()), **how)


@pytest.mark.parametrize(
    "cls", [c for _, c in OPTIMIZERS], ids=[n for n, _ in OPTIMIZERS]
)
@pytest.mark.parametrize("only_on_root", [False, True])
def test_broadcast_optimizer_state(cls: Any, only_on_root: bool) -> None:
    torch.manual_seed(hvd.rank())
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = made(cls, model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3)).pow(2).mean()
        loss.backward()
        return loss

    if not (only_on_root and hvd.rank() > 0):
        optimizer.step(closure)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    torch.manual_seed(0)
    optimizer.step(closure)
    assert same_everywhere(model)
    states = hvd.allgather_object(optimizer.state_dict())
    assert all(str(one) == str(states[0]) for one in states)


def test_broadcast_of_parameters_in_all_forms() -> None:
    torch.manual_seed(hvd.rank())
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    hvd.broadcast_parameters(model.named_parameters(), root_rank=0)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    assert same_everywhere(model)


def test_broadcast_and_allgather_of_objects() -> None:
    want = {"epoch": 3, "lr": [0.1, 0.2], ("a", 1): None}
    got = hvd.broadcast_object(want if hvd.rank() == 0 else None, 0, name="o")
    assert got == want
    assert hvd.allgather_object({"rank": hvd.rank()}) == [
        {"rank": w} for w in range(hvd.size())
    ]


# ---- the optimizer ----


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def batch(step: int, worker: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + worker)
    return torch.randn(6, 4, generator=generator)


def distributed(of: nn.Module, **how: Any) -> Any:
    optimizer = torch.optim.SGD(of.parameters(), lr=0.1, momentum=0.5)
    return hvd.DistributedOptimizer(optimizer, **how)


def truth(
    steps: int, passes: int = 1, scale: float = 1.0, clip: float = 0.0
) -> nn.Module:
    """The same training in one process."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for step in range(steps):
        optimizer.zero_grad()
        for i, w in itertools.product(range(passes), range(hvd.size())):
            loss = model(batch(step * passes + i, w)).pow(2).mean()
            (loss * scale / hvd.size()).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def close(model: nn.Module, want: nn.Module, rtol: float = 1e-5) -> None:
    assert same_everywhere(model)
    torch.testing.assert_close(
        list(model.parameters()), list(want.parameters()), rtol=rtol, atol=rtol / 10
    )


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_gradient_aggregation(passes: int, named: bool, op: Any) -> None:
    model = net()
    optimizer = distributed(
        model,
        named_parameters=model.named_parameters() if named else None,
        backward_passes_per_step=passes,
        op=op,
    )
    for step in range(3):
        optimizer.zero_grad()
        for i in range(passes):
            model(batch(step * passes + i, hvd.rank())).pow(2).mean().backward()
        optimizer.step()
    close(model, truth(3, passes, hvd.size() if op is hvd.Sum else 1.0))
    hvd.detach(optimizer)


@pytest.mark.parametrize(
    "how",
    [
        {"compression": hvd.Compression.fp16},
        {"compression": hvd.Compression.bf16},
        {"gradient_predivide_factor": 2.0},
        {"num_groups": 2},
        {"groups": [[]]},
        {"sparse_as_dense": True},
        {"process_set": hvd.global_process_set},
    ],
    ids=str,
)
def test_keywords(how: Any) -> None:
    model = net()
    optimizer = distributed(model, named_parameters=model.named_parameters(), **how)
    for step in range(2):
        optimizer.zero_grad()
        model(batch(step, hvd.rank())).pow(2).mean().backward()
        optimizer.step()
    close(model, truth(2), 5e-2 if "compression" in how else 1e-5)
    hvd.detach(optimizer)


@pytest.mark.parametrize("passes", [1, 2])
def test_clipping_with_synchronize(passes: int) -> None:
    model = net()
    optimizer = distributed(model, backward_passes_per_step=passes)
    for step in range(3):
        optimizer.zero_grad()
        for i in range(passes):
            model(batch(step * passes + i, hvd.rank())).pow(2).mean().backward()
        optimizer.synchronize()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        with optimizer.skip_synchronize():
            optimizer.step()
    close(model, truth(3, passes, clip=0.01))
    hvd.detach(optimizer)


def test_synchronize_ends_an_incomplete_accumulation() -> None:
    model = net()
    optimizer = distributed(model, backward_passes_per_step=4)
    for step in range(3):
        optimizer.zero_grad()
        for i in range(2):
            model(batch(2 * step + i, hvd.rank())).pow(2).mean().backward()
        if step < 2:
            optimizer.synchronize()
        optimizer.step()
    close(model, truth(3, 2))
    hvd.detach(optimizer)


def test_a_scaler_between_synchronize_and_step() -> None:
    model = net()
    optimizer = distributed(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(model(batch(step, hvd.rank())).pow(2).mean()).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
    close(model, truth(2))
    hvd.detach(optimizer)


def test_a_schedule_and_a_copy() -> None:
    model = net()
    optimizer = distributed(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model(batch(0, hvd.rank())).mean().backward()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert isinstance(optimizer, torch.optim.SGD)
    copied = copy.deepcopy(optimizer)
    assert not hasattr(copied, "synchronize")
    hvd.detach(optimizer)
    assert not hasattr(optimizer, "synchronize")


def test_no_gradient_at_all_and_frozen_parameters() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = distributed(model, named_parameters=model.named_parameters())
    optimizer.step()
    model(batch(0, hvd.rank())).mean().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert same_everywhere(model)
    hvd.detach(optimizer)


@several
@pytest.mark.parametrize(
    "counts", [[4, 2, 3, 1], [0, 2, 2, 2], [2, 2, 2, 2], [1, 3, 3, 3]]
)
@pytest.mark.parametrize("passes", [1, 2])
def test_join_with_uneven_numbers_of_batches(counts: list[int], passes: int) -> None:
    model = nn.Sequential(net(), nn.BatchNorm1d(2))
    optimizer = distributed(model, backward_passes_per_step=passes, model=model)
    for step in range(counts[hvd.rank()]):
        optimizer.zero_grad()
        for i in range(passes):
            model(batch(step * passes + i, hvd.rank())).pow(2).sum().backward()
        optimizer.step()
    last = hvd.join()
    most = max(counts[: hvd.size()])
    assert most in counts
    assert counts[last] == most
    assert same_everywhere(model)
    states = hvd.allgather_object(optimizer.state_dict())
    assert all(str(one) == str(states[0]) for one in states)
    model(batch(9, hvd.rank())).pow(2).sum().backward()  # and it goes on
    if passes == 2:
        model(batch(8, hvd.rank())).pow(2).sum().backward()
    optimizer.step()
    assert same_everywhere(model)
    hvd.detach(optimizer)


def test_join_counts_those_who_wait_as_zeros() -> None:
    model = net()
    optimizer = distributed(model)
    if hvd.rank() == 0:
        model(batch(0, 0)).pow(2).mean().backward()
        optimizer.step()
    assert hvd.join() == 0
    alone = net()
    (alone(batch(0, 0)).pow(2).mean() / hvd.size()).backward()
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    close(model, alone)
    hvd.detach(optimizer)
    assert hvd.join() in range(hvd.size())  # without any optimizer
