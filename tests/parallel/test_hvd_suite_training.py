"""Horovod's tests of its optimizer, of states and of the rest, by their names."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from parallel.suite import (
    alone,
    distributed,
    net,
    refused,
    refuses_a_process_set,
    same,
    several,
    step,
)
from torch import Tensor, nn

import codedgrad.hvd as hvd
from codedgrad import ConfigError

# ---- who we are ----


def test_horovod_is_initialized() -> None:
    assert hvd.is_initialized()
    hvd.init()
    assert hvd.is_initialized()


def test_horovod_rank() -> None:
    assert hvd.allgather(torch.tensor([hvd.rank()])).tolist() == list(range(hvd.size()))


def test_horovod_size() -> None:
    assert hvd.allreduce(torch.tensor(1), op=hvd.Sum).item() == hvd.size()


def test_global_barrier_op() -> None:
    hvd.barrier()
    hvd.barrier(process_set=hvd.global_process_set)


def test_process_set_barrier_op() -> None:
    refuses_a_process_set(hvd.barrier)


def test_barrier_with_multiple_collectives() -> None:
    broadcast = hvd.broadcast_async(torch.eye(3), root_rank=0)
    gathered = [hvd.allgather_async(torch.eye(5)) for _ in range(2)]
    reduced = hvd.allreduce_async(torch.eye(5))
    hvd.barrier()
    assert torch.equal(hvd.synchronize(reduced), torch.eye(5))
    for handle in [broadcast, *gathered]:
        hvd.synchronize(handle)


def test_timeline_api() -> None:
    refused(lambda: hvd.start_timeline("file"), "codedgrad report")
    refused(lambda: hvd.stop_timeline(), "codedgrad report")


# ---- states and objects ----


def adam(model: nn.Module) -> Any:
    lr = 0.1 * (1 + hvd.rank())
    betas = 0.5 + hvd.rank() / 100, 0.75
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas)


def states(optimizer: Any) -> None:
    every = hvd.allgather_object(optimizer.state_dict())
    assert all(str(one) == str(every[0]) for one in every)


def test_broadcast_state() -> None:
    model = net(hvd.rank())
    optimizer = adam(model)
    step(optimizer, model(torch.randn(3, 4)).mean())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    same(model)
    states(optimizer)


def test_broadcast_state_options() -> None:
    optimizer = adam(net())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.1, (0.5, 0.75))
    assert isinstance(group["betas"], tuple)


def test_broadcast_state_no_grad() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = adam(model)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    step(optimizer, model(torch.ones(3, 4)).mean())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    states(optimizer)


def test_broadcast_object() -> None:
    want: Any = {"a": 1, "b": [2.5, None], "c": ("x", torch.arange(3))}
    got = hvd.broadcast_object(want if hvd.rank() == 0 else {}, root_rank=0)
    assert str(got) == str(want)


def test_broadcast_object_process_sets() -> None:
    refuses_a_process_set(hvd.broadcast_object, {"a": 1})


def test_allgather_object() -> None:
    got = hvd.allgather_object({"rank": hvd.rank(), "text": "x" * hvd.rank()})
    assert got == [{"rank": w, "text": "x" * w} for w in range(hvd.size())]


def test_compression_fp16() -> None:
    """Here compression is the type in which gradients travel (float64 is refused)."""
    for dtype in (torch.float16, torch.float32):
        model = nn.Linear(4, 2, bias=False).to(dtype)
        nn.init.ones_(model.weight)
        optimizer = distributed(model, compression=hvd.Compression.fp16)
        step(optimizer, model(torch.ones(2, 4, dtype=dtype)).sum())
        want = torch.full((2, 4), 1.0 - 0.1 * 2, dtype=dtype)
        torch.testing.assert_close(model.weight.detach(), want, rtol=1e-3, atol=0.0)
        hvd.detach(optimizer)


# ---- the optimizer ----


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def forward(self, x: Tensor, head: int) -> Tensor:
        out: Tensor = self.heads[head](self.body(x))
        return out


def test_force_allreduce() -> None:
    """Workers use other parts of the model; what nobody used has no gradient."""
    model = TwoHeads()
    optimizer = distributed(model)
    for _ in range(3):
        step(optimizer, model(torch.ones(2, 4), hvd.rank() % 2).mean())
        used = model.heads[1].weight.grad is not None
        assert used == (hvd.size() > 1)
        same(model)
    hvd.detach(optimizer)


@alone
def test_delta_optimizer() -> None:
    with pytest.raises(ConfigError, match="Adasum"):
        distributed(net(), op=hvd.Adasum)


@alone
def test_duplicate_names() -> None:
    model = net()
    twice = [*model.named_parameters(), *model.named_parameters()]
    with pytest.raises(ConfigError, match="same name twice"):
        distributed(model, named_parameters=twice)


@alone
def test_missing_named_parameters() -> None:
    model = net()
    with pytest.raises(ConfigError, match="lacks"):
        distributed(model, named_parameters=list(model.named_parameters())[:1])


def test_no_named_parameters() -> None:
    model = net()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    step(optimizer, model(torch.ones(2, 4) * hvd.rank()).sum())
    same(model)
    hvd.detach(optimizer)


def test_optimizer_no_named_parameters() -> None:
    """Parameters of several groups that have no names of their own."""
    first, second = net(), net(1)
    groups = [{"params": m.parameters()} for m in (first, second)]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(groups, lr=0.1))
    x = torch.ones(2, 4) * hvd.rank()
    step(optimizer, (first(x) + second(x)).sum())
    same(nn.ModuleList([first, second]))
    hvd.detach(optimizer)


@several
def test_dynamic_requires_grad() -> None:
    maker, judge = nn.Linear(2, 4), nn.Linear(4, 1)
    for module in (maker, judge):
        hvd.broadcast_parameters(module.state_dict(), root_rank=0)
    optimizers = [distributed(maker), distributed(judge)]
    for turn in [0, 1] * 3:
        for i, module in enumerate((maker, judge)):
            module.requires_grad_(i == turn)
            optimizers[i].zero_grad()
        judge(maker(torch.ones(3, 2) + hvd.rank())).sum().backward()
        for i, module in enumerate((maker, judge)):
            assert all((p.grad is not None) == (i == turn) for p in module.parameters())
        optimizers[turn].step()
        same(nn.ModuleList([maker, judge]))
    for optimizer in optimizers:
        hvd.detach(optimizer)


def one_weight(**how: Any) -> tuple[nn.Module, Any]:
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model, distributed(model, **how)


def test_gradient_clipping() -> None:
    model, optimizer = one_weight()
    optimizer.zero_grad()
    nn.functional.mse_loss(model(torch.zeros(1, 1)), torch.ones(1, 1)).backward()
    optimizer.synchronize()
    before = model.bias.grad.item()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    after = model.bias.grad.item()
    with optimizer.skip_synchronize():
        optimizer.step()
    assert abs(before) > 0.1 >= abs(after)
    assert model.bias.item() == pytest.approx(-0.1 * after)
    hvd.detach(optimizer)


def test_synchronize_step_warning() -> None:
    """No warning is needed: what was synchronised is not exchanged a second time."""
    model, optimizer = one_weight()
    optimizer.zero_grad()
    nn.functional.mse_loss(model(torch.zeros(1, 1)), torch.ones(1, 1)).backward()
    optimizer.synchronize()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    after = model.bias.grad.item()
    optimizer.step()
    assert model.bias.grad.item() == after
    assert model.bias.item() == pytest.approx(-0.1 * after)
    hvd.detach(optimizer)


@alone
def test_optimizer_process_sets() -> None:
    with pytest.raises(ConfigError, match="process set"):
        distributed(net(), process_set=object())


@pytest.mark.parametrize("sparse_as_dense", [False, True])
def test_sparse_embeddings(sparse_as_dense: bool) -> None:
    model, truth = (nn.Embedding(10, 3, sparse=True) for _ in range(2))
    for module in (model, truth):
        nn.init.ones_(module.weight)
    cls: Any = torch.optim.SGD if sparse_as_dense else torch.optim.SparseAdam
    optimizer = hvd.DistributedOptimizer(
        cls(list(model.parameters()), lr=0.1), sparse_as_dense=sparse_as_dense
    )
    plain = cls(list(truth.parameters()), lr=0.1)
    words = [[1, 2, 4, 5, 4, 3, 2, 9]] + [[1, 3, 4, 4, 7, 9]] * (hvd.size() - 1)
    for _ in range(2):
        step(optimizer, model(torch.tensor(words[hvd.rank()])).sum())
        assert model.weight.grad.is_sparse is not sparse_as_dense
        plain.zero_grad()
        for some in words:
            (truth(torch.tensor(some)).sum() / hvd.size()).backward()
        plain.step()
    torch.testing.assert_close(model.weight, truth.weight)
    same(model)
    hvd.detach(optimizer)


def test_async_sparse_allreduce() -> None:
    torch.manual_seed(hvd.rank())
    dense = [torch.rand(n, 5) * (torch.rand(n, 5) > 0.8) for n in (7, 12, 31)]
    handles = [
        hvd.sparse_allreduce_async(t.to_sparse(), op=hvd.Average, name=str(i))
        for i, t in enumerate(dense)
    ]
    called = [handle() for handle in handles[:2]]
    called.append(hvd.synchronize(handles[2]))
    for one, t in zip(called, dense, strict=True):
        torch.testing.assert_close(one.to_dense(), hvd.allreduce(t))
    total = hvd.sparse_allreduce_async(dense[0].to_sparse(), op=hvd.Sum)()
    torch.testing.assert_close(total.to_dense(), hvd.allreduce(dense[0], op=hvd.Sum))


def test_async_sparse_allreduce_process_sets() -> None:
    refuses_a_process_set(hvd.sparse_allreduce_async, torch.eye(2).to_sparse())


def test_horovod_sync_batch_norm() -> None:
    for channels, mean in itertools.product([1, 4], [0.0, 3.0]):
        torch.manual_seed(1)
        whole = torch.randn(hvd.size(), 2, channels, 5, dtype=torch.float64) + mean
        layer = hvd.SyncBatchNorm(channels).double()
        plain = nn.BatchNorm1d(channels).double()
        got = layer(whole[hvd.rank()])
        torch.testing.assert_close(
            got, plain(whole.flatten(0, 1))[2 * hvd.rank() :][:2]
        )
        torch.testing.assert_close(layer.running_var, plain.running_var)


# ---- join; see test_hvd_optimizer.py for the gradients ----


@several
@pytest.mark.parametrize("first", [0, 1])
def test_horovod_join_allreduce(first: int) -> None:
    """Only gradients are exchanged with workers that have joined; all are told so."""
    waits = hvd.rank() == first
    refused(hvd.join if waits else lambda: hvd.allreduce(torch.ones(3)), "in join")
    assert hvd.join() in range(hvd.size())


@several
@pytest.mark.parametrize("first", [0, 1])
def test_horovod_join_allgather(first: int) -> None:
    waits = hvd.rank() == first
    refused(hvd.join if waits else lambda: hvd.allgather(torch.ones(3)), "in join")
    assert hvd.join() in range(hvd.size())


@several
@pytest.mark.parametrize("first", [0, 1])
def test_horovod_join_broadcast(first: int) -> None:
    waits = hvd.rank() == first
    refused(hvd.join if waits else lambda: hvd.broadcast(torch.ones(3), 0), "in join")
    assert hvd.join() in range(hvd.size())
