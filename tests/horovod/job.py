"""Horovod and codedgrad train in one process; test_horovod.py starts this."""

from __future__ import annotations

import horovod.torch as hvd
import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad


def main() -> None:
    hvd.init()
    codedgrad.init()
    assert (hvd.rank(), hvd.size()) == (codedgrad.rank(), codedgrad.size())
    assert hvd.local_rank() == codedgrad.local_rank()
    torch.manual_seed(hvd.rank())
    model = nn.Linear(8, 3)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    coded = codedgrad.CodedGradient(model, faults="random:probability=0.3,factor=4")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    y = torch.randint(0, 3, (64,), generator=generator)
    sampler = codedgrad.ShardSampler(TensorDataset(x, y), 16 * hvd.size())
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            coded.backward(lambda a, b: loss_fn(model(a), b), shards)
            optimizer.step()
            optimizer.zero_grad()
        # Between steps Horovod's own collectives go on as ever.
        total = hvd.allreduce(torch.tensor([float(hvd.rank() + 1)]), op=hvd.Sum)
        assert total == hvd.size() * (hvd.size() + 1) / 2
    everywhere = hvd.allgather(model.weight.detach().view(1, -1))
    assert (everywhere == everywhere[0]).all()
    print(f"worker {hvd.rank()} of {hvd.size()} is done", flush=True)
    coded.close()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
