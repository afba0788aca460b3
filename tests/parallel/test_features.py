"""What users of PyTorch expect to work unchanged, at any number of workers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from codedgrad.settings import Settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import DELAYS, SEED, Net, build, dataset, digest, everywhere, plain

import codedgrad
from codedgrad import codes
from codedgrad.hvd.optimizer import DropInPlan, detach

if TYPE_CHECKING:
    from collections.abc import Callable

criterion = nn.CrossEntropyLoss()


def code(micro: int = 2) -> codes.Code:
    return codes.spread(codedgrad.size(), micro=micro)


def data(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (count,), generator=generator))


def small() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    after: Callable[[], None] | None = None,
    set_of: TensorDataset | None = None,
    **settings: Any,
) -> str:
    """Train and return the digest; the same on every worker, or the test fails."""
    settings.setdefault("same_bits", True)
    coded = codedgrad.CodedGradient(model, code(), seed=SEED, **settings)
    sampler = codedgrad.ShardSampler(set_of or data(), 48, seed=SEED)
    while coded.step < steps:
        sampler.set_epoch(coded.step // 2)
        for shards in coded.steps(sampler):
            coded.backward(loss or (lambda x, y: criterion(model(x), y)), shards)
            (after or optimizer.step)()
            optimizer.zero_grad()
    coded.close()
    value = digest(model, optimizer)
    assert len(set(everywhere(value))) == 1
    return value


def test_the_gradient_is_that_of_the_whole_batch() -> None:
    model = small()
    coded = codedgrad.CodedGradient(model, code())
    shards = next(coded.steps(codedgrad.ShardSampler(data(), 50, shuffle=False)))
    loss = coded.backward(lambda x, y: criterion(model(x), y), shards)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    x, y = data()[:50]
    whole = criterion(model(x), y)
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    torch.testing.assert_close(got, [p.grad for p in model.parameters()])
    coded.close()


def test_autocast_bf16() -> None:
    def trained(faults: str) -> str:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(x)
                assert out.dtype == torch.bfloat16
                return criterion(out.float(), y)

        return run(model, optimizer, 12, loss=loss, faults=faults)

    assert trained("") == trained(DELAYS)


def test_parameters_in_bf16() -> None:
    def trained(faults: str) -> str:
        model = small().to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return criterion(model(x.bfloat16()).float(), y)

        coded = codedgrad.CodedGradient(model, code(), faults=faults, same_bits=True)
        for shards in coded.steps(codedgrad.ShardSampler(data(), 48)):
            coded.backward(loss, shards)
            assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
            optimizer.step()
        coded.close()
        return str([p.sum().item() for p in model.parameters()])

    assert trained("") == trained(DELAYS)


def test_gradient_accumulation() -> None:
    model = small()
    coded = codedgrad.CodedGradient(model, code(), same_bits=True)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    steps = list(coded.steps(codedgrad.ShardSampler(data(), 48, shuffle=False)))
    for shards in steps:
        coded.backward(lambda x, y: criterion(model(x), y), shards)
        sums = [s + p.grad for s, p in zip(sums, model.parameters(), strict=True)]
        model.zero_grad()
    for shards in steps:
        coded.backward(lambda x, y: criterion(model(x), y), shards)
    for s, p in zip(sums, model.parameters(), strict=True):
        assert torch.equal(s, p.grad)
    coded.close()


def test_grad_scaler_skips_the_step_everywhere() -> None:
    """AMP's order, scale -> backward -> unscale -> clip -> step, with an overflow."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    how: Any = {"on_nonfinite": "continue", "same_bits": True}
    coded = codedgrad.CodedGradient(model, code(), **how)
    sampler = codedgrad.ShardSampler(data(), 48)
    scales = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            overflow = float("inf") if coded.step == 1 else 1.0
            before = [p.detach().clone() for p in model.parameters()]

            def loss(x: Tensor, y: Tensor, factor: float = overflow) -> Tensor:
                return scaler.scale(criterion(model(x), y) * factor)

            coded.backward(loss, shards)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            same = all(map(torch.equal, before, model.parameters()))
            assert same == (coded.step == 2)
            scales.append(scaler.get_scale())
    assert scales == [1024.0, 512.0, 512.0, 512.0]
    total = sum(map(int, everywhere(str(coded.nonfinite))))
    assert total >= coded.code.parts
    coded.close()


def test_resume_from_a_checkpoint() -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(3)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        how: Any = {"seed": SEED, "same_bits": True}
        return model, optimizer, codedgrad.CodedGradient(model, code(), **how)

    def go(model: nn.Module, optimizer: Any, coded: Any, epochs: list[int]) -> None:
        sampler = codedgrad.ShardSampler(dataset(), 48, seed=SEED)
        for epoch in epochs:
            sampler.set_epoch(epoch)
            for shards in coded.steps(sampler):
                coded.backward(lambda x, y: criterion(model(x), y), shards)
                optimizer.step()
                optimizer.zero_grad()

    model, optimizer, coded = start()
    go(model, optimizer, coded, [0, 1])
    file = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "coded": coded}
    torch.save({k: v.state_dict() for k, v in parts.items()}, file)
    go(model, optimizer, coded, [2])
    coded.close()
    want = digest(model, optimizer)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model, optimizer, coded = start()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    coded.load_state_dict(saved["coded"])
    assert coded.step == 6
    go(model, optimizer, coded, [2])
    coded.close()
    assert digest(model, optimizer) == want


def test_two_models_take_turns() -> None:
    first, second = small(), small().double()
    both = [codedgrad.CodedGradient(m, code(), faults=DELAYS) for m in (first, second)]
    sampler = codedgrad.ShardSampler(data(), 24)
    for shards in both[0].steps(sampler):
        both[0].backward(lambda x, y: criterion(first(x), y), shards)
        both[1].backward(lambda x, y: criterion(second(x.double()), y), shards)
        assert first[0].weight.grad.dtype == torch.float32
        assert second[0].weight.grad.dtype == torch.float64
        torch.testing.assert_close(
            first[0].weight.grad.double(), second[0].weight.grad, atol=1e-5, rtol=1e-4
        )
        for model in (first, second):
            model.zero_grad()
    for coded in both:
        coded.close()


def test_channels_last() -> None:
    torch.manual_seed(0)
    images = TensorDataset(torch.randn(48, 4, 6, 6), torch.randint(0, 3, (48,)))
    torch.manual_seed(0)
    plainly = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    last = copy.deepcopy(plainly).to(memory_format=torch.channels_last)
    for model in (plainly, last):
        coded = codedgrad.CodedGradient(model, code())
        shards = next(coded.steps(codedgrad.ShardSampler(images, 48)))
        coded.backward(lambda x, y, m=model: criterion(m(x), y), shards)
        coded.close()
    torch.testing.assert_close(plainly[0].weight.grad, last[0].weight.grad)
    assert last[0].weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_broadcasts() -> None:
    rank = codedgrad.rank()
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (rank + 1))
    if rank == 0:  # only there has the optimizer a state, as after a checkpoint
        model(torch.randn(8, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    codedgrad.broadcast_parameters(model.state_dict())
    codedgrad.broadcast_optimizer_state(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(set(everywhere(digest(model, optimizer)))) == 1
    assert optimizer.state_dict()["state"][0]["step"] == 1
    with pytest.raises(codedgrad.ConfigError, match="state_dict"):
        codedgrad.broadcast_parameters(model)


def drop_in(code: codes.Code, steps: int, faults: str = "") -> tuple[str, Any]:
    """An unmodified loop with DistributedOptimizer."""
    model, optimizer, schedule = build(steps)
    batch = 48 - 48 % codedgrad.size()  # shards of equal sizes
    where = codedgrad.ShardBatchSampler(
        dataset(96), batch, code, codedgrad.rank(), seed=SEED
    )
    before = type(optimizer), optimizer.defaults
    optimizer = codedgrad.DistributedOptimizer(
        optimizer,
        model.named_parameters(),
        code=code,
        model=model,
        sampler=where,
        seed=SEED,
    )
    assert (type(optimizer), optimizer.defaults) == before
    plan = codedgrad.Faults.parse(faults, codedgrad.size())
    injector = codedgrad.faults.Injector(plan, codedgrad.rank()) if plan else None
    done = 0
    while done < steps:
        where.set_epoch(done // 2)
        for x, y in DataLoader(dataset(96), batch_sampler=where):
            if injector is not None:
                injector.begin(done, 0.0)
            criterion(model(x), y).backward()
            if injector is not None:
                injector.boundary(lambda: None)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            done += 1
    value = digest(model, optimizer)
    pickle.loads(pickle.dumps(optimizer))
    detach(optimizer)
    return value, model


def test_drop_in_is_the_plain_sum() -> None:
    n = codedgrad.size()
    value, _ = drop_in(codes.uncoded(n), 8)
    assert len(set(everywhere(value))) == 1
    want, _ = plain(codes.uncoded(n).tree, n, 8, samples=96)
    if 48 % n == 0:  # else shards are filled up, as DistributedSampler does
        assert value == want


def test_drop_in_with_fractional_repetition_under_delays() -> None:
    n = codedgrad.size()
    copies = next((d for d in range(2, n + 1) if n % d == 0), 1)
    code = codes.fractional(n, copies=copies)
    calm, _ = drop_in(code, 20)
    stormy, _ = drop_in(code, 20, DELAYS)
    assert calm == stormy
    assert len(set(everywhere(stormy))) == 1


def test_drop_in_accumulates() -> None:
    n = codedgrad.size()
    model = small()
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        backward_passes_per_step=2,
    )
    x, y = data()[: 12 * n]
    mine = slice(12 * codedgrad.rank(), 12 * codedgrad.rank() + 12)
    for half in (x[mine][:6], x[mine][6:]):
        (criterion(model(half), y[mine][:6]) / 2).backward()
    got = [p.grad.clone() for p in model.parameters()]
    detach(optimizer)
    model.zero_grad()
    for worker in range(n):
        part = slice(12 * worker, 12 * worker + 12)
        for half in (x[part][:6], x[part][6:]):
            (criterion(model(half), y[part][:6]) / 2 / n).backward()
    torch.testing.assert_close(got, [p.grad for p in model.parameters()])


def test_drop_in_refuses_codes_that_need_the_loop() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    size = codedgrad.size()
    for plan, reason in (
        (DropInPlan(codes.uncoded(size + 1), 1, Settings()), "the job has"),
        (
            DropInPlan(codes.spread(size, micro=2), 0, Settings()),
            "backward_passes_per_step",
        ),
    ):
        with pytest.raises(codedgrad.ConfigError, match=reason):
            plan.check(size)
    with pytest.raises(codedgrad.ConfigError, match="did not come from"):
        detach(optimizer)


def test_reports_and_records() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    coded = codedgrad.CodedGradient(model, code())
    for shards in coded.steps(codedgrad.ShardSampler(data(), 24)):
        loss = coded.backward(lambda x, y: criterion(model(x), y), shards)
        optimizer.step()
        report = coded.report
        assert report is not None
        assert report.loss == float(loss)
        assert report.step == coded.step - 1
        assert report.step_s >= report.compute_s + report.wait_s
        assert set(report.arrivals_s) <= set(range(codedgrad.size()))
    assert len(coded.record.reports) == 4
    assert coded.record.arrivals(codedgrad.size()).shape == (4, codedgrad.size())
    coded.close()
