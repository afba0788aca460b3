"""Accelerate: the recipe of docs/frameworks.md, and the Accelerator's collectives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import codedgrad
from codedgrad.errors import ConfigError
from codedgrad.integrations.accelerate import join

N, RANK = codedgrad.size(), codedgrad.rank()


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    made = Accelerator(cpu=True, mixed_precision="bf16")
    join(made)
    return made


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(84, 8, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (84,), generator=generator))


def test_the_recipe(accelerator: Accelerator) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net, optimizer = accelerator.prepare(net, optimizer)
    coded = codedgrad.CodedGradient(accelerator.unwrap_model(net))
    sampler = codedgrad.ShardSampler(samples(), batch_size=32, shuffle=False)
    held_out = accelerator.prepare(DataLoader(samples(), 10))

    def loss_fn(x: Any, y: Any) -> Any:
        with accelerator.autocast():
            return nn.functional.cross_entropy(net(x), y)

    plain = model()
    reference = torch.optim.SGD(plain.parameters(), 0.1)
    for index, shards in enumerate(coded.steps(sampler)):
        loss = coded.backward(loss_fn, shards)
        accelerator.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        x, y = samples()[index * 32 : index * 32 + 32]
        with torch.autocast("cpu", torch.bfloat16):
            whole = nn.functional.cross_entropy(plain(x), y)
        whole.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        reference.step()
        reference.zero_grad()
        assert float(loss) == pytest.approx(float(whole), abs=3e-2)
    coded.close()
    right = []
    for x, y in held_out:
        right.append(accelerator.gather_for_metrics(net(x).argmax(1) == y))
    assert len(torch.cat(right)) == 84


def test_who_is_who_and_what_is_gathered(accelerator: Accelerator) -> None:
    assert (accelerator.num_processes, accelerator.process_index) == (N, RANK)
    assert accelerator.is_main_process == (RANK == 0)
    mine = {"a": torch.tensor(RANK), "b": [torch.full((2, RANK + 1), RANK)]}
    padded = accelerator.pad_across_processes(mine, dim=1, pad_index=-1)
    every = accelerator.gather(padded)
    assert every["a"].tolist() == list(range(N))
    assert every["b"][0].shape == (2 * N, N)
    assert every["b"][0][0].tolist() == [0] + [-1] * (N - 1)
    assert accelerator.gather_for_metrics(["x" * RANK]) == ["x" * r for r in range(N)]
    assert float(accelerator.reduce(torch.tensor(2.0), "mean", 3.0)) == 6.0
    accelerator.wait_for_everyone()


def test_what_would_train_without_exchange(accelerator: Accelerator) -> None:
    with pytest.raises(ConfigError, match=r"let coded\.backward"):
        accelerator.backward(torch.ones((), requires_grad=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "distributed_type", "MULTI_CPU")
        with pytest.raises(ConfigError, match="codedgrad exchanges gradients, too"):
            join(accelerator)
