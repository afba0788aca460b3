"""Groups of processes that are one worker of the code: the bits stay those of it."""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import SEED, coded, dataset, everywhere, plain

import codedgrad
from codedgrad import codes
from codedgrad.groups import channel
from codedgrad.job.waiting import Waiting

STEPS = 30
# By group: each late now and then, so that the others help, and the late one abandons
# its passes, together, and fast-forwards.
STORM = (
    "random:seed=4,probability=0.3,factor=5;random:seed=9,probability=0.1,seconds=0.02"
)
WIRES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
criterion = nn.CrossEntropyLoss()


def group_size() -> int:
    """2 where that divides the processes, else all of them."""
    n = codedgrad.size()
    return 2 if n % 2 == 0 else n


def groups() -> int:
    return codedgrad.size() // group_size()


def in_groups(code: codes.Code | None, steps: int = STEPS, **settings: Any) -> Any:
    """The digest, the same on every process, and the losses."""
    got = coded(code, steps, local_group=group_size(), **settings)  # type: ignore[arg-type]
    assert len(set(everywhere(got[0]))) == 1
    return got


@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("overlap", [True, False])
def test_groups_change_no_bit(bucket_mb: float | None, overlap: bool) -> None:
    """Batch norm, dropout, a last step with fewer samples than micro-batches."""
    code = codes.spread(groups(), micro=8)
    how = {"bucket_mb": bucket_mb, "overlap": overlap}
    calm, stormy = in_groups(code, **how), in_groups(code, faults=STORM, **how)
    assert calm == stormy
    if codedgrad.rank() == 0:
        assert calm == plain(code.tree, code.parts, STEPS)


def test_large_buckets_change_no_bit() -> None:
    """A gradient of 3 MB in buckets of 1 MB."""
    code, wide = codes.spread(groups(), micro=8), 6000
    how = {"wide": wide, "bucket_mb": 1.0}
    got = [in_groups(code, 6, faults=f, **how) for f in ("", STORM)]
    assert got[0] == got[1]
    if codedgrad.rank() == 0:
        assert got[0] == plain(code.tree, code.parts, 6, wide=wide)


@pytest.mark.parametrize("which", range(5))
def test_any_code_and_uneven_division(which: int) -> None:
    """Processes with several nodes, with different numbers; help by whole shards."""
    n = groups()
    divisor = next((d for d in range(2, n + 1) if n % d == 0), 1)
    code = [
        codes.spread(n, micro=5),
        codes.spread(n, micro=7, copies=1),
        codes.scheduled(n, copies=min(2, n), micro=6),
        codes.fractional(n, copies=divisor, micro=5),
        codes.uncoded(n, micro=5),
    ][which]
    calm = in_groups(code, bucket_mb=0.0005)
    assert in_groups(code, faults=STORM) == calm
    if codedgrad.rank() == 0:
        assert calm == plain(code.tree, code.parts, STEPS)


@pytest.mark.parametrize("wire", WIRES)
def test_narrow_wires(wire: str) -> None:
    """Rounded where one process rounds: at every node of a row."""
    code = codes.spread(groups(), micro=6)
    got = [in_groups(code, faults=f, wire=wire, bucket_mb=0.0005) for f in ("", STORM)]
    assert got[0] == got[1]
    if codedgrad.rank() == 0:
        kind = WIRES[wire]
        assert got[0] == plain(code.tree, code.parts, STEPS, wire=kind, rows=code.micro)


def test_the_default_code_and_one_group_of_all() -> None:
    """All processes here are on one machine; then nobody can be late."""
    n = codedgrad.size()
    assert (codedgrad.cross_rank(), codedgrad.cross_size()) == (0, 1)
    got = coded(None, 10, local_group="node")  # type: ignore[arg-type]
    code = codes.spread(1, micro=8 if n > 4 else 4)
    assert len(set(everywhere(got[0]))) == 1
    if codedgrad.rank() == 0:
        assert got == plain(code.tree, code.parts, 10)


def test_groups_of_one_are_no_groups() -> None:
    code = codes.spread(codedgrad.size(), micro=2)
    assert coded(code, 10, local_group=1) == coded(code, 10)


def sleepy(steps: int, pass_s: float = 0.02, **how: Any) -> codedgrad.CodedGradient:
    """Train; a micro-batch sleeps, so that any number of processes fit the cores."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    data = TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    code = codes.spread(groups(), micro=8)
    how |= {"local_group": group_size(), "same_bits": True}
    gradient = codedgrad.CodedGradient(model, code, **how)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        time.sleep(pass_s)
        return criterion(model(x), y)

    codedgrad.barrier()
    while gradient.step < steps:
        for shards in gradient.steps(codedgrad.ShardSampler(data, 64)):
            gradient.backward(loss, shards)
            model.zero_grad()
    gradient.close()
    return gradient


def test_members_divide_the_work() -> None:
    gradient = sleepy(12, patience=20.0)
    usual = sorted(r.compute_s for r in gradient.record.reports)[6]
    # Eight micro-batches, of which each process of two computes four.
    assert usual < 0.02 * 8 * 0.85 if group_size() > 1 else usual >= 0.16
    assert sum(r.redundant_passes for r in gradient.record.reports) == 0


def test_a_late_group_is_helped_and_goes_on() -> None:
    if groups() == 1:
        return
    last = groups() - 1
    gradient = sleepy(10, faults=f"slow:worker={last},factor=20")
    reports = gradient.record.reports
    late = codedgrad.rank() // group_size() == last
    if late:
        assert sum(r.abandoned or r.fast_forwarded for r in reports) >= 5
    else:
        # Past the patience two micro-batches at a time, one by each process.
        assert max(r.redundant_passes for r in reports) >= 2
    assert sorted(r.step_s for r in reports)[5] < 0.5 * 20 * 8 * 0.02 / group_size()


def test_a_stopped_group_fast_forwards() -> None:
    if groups() == 1:
        return
    last = groups() - 1
    gradient = sleepy(16, faults=f"stall:worker={last},step=4,seconds=3", window=64)
    forwarded = sum(r.fast_forwarded for r in gradient.record.reports)
    if codedgrad.rank() // group_size() == last:
        assert forwarded >= 2
    assert len(set(everywhere(str(gradient.step)))) == 1


def test_one_slow_process_makes_its_group_late() -> None:
    """The others of its group leave their part when the other groups are done."""
    if groups() == 1:
        return
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    data = TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    code = codes.spread(groups(), micro=8)
    gradient = codedgrad.CodedGradient(model, code, local_group=group_size())
    slow = codedgrad.rank() == codedgrad.size() - 1

    def loss(x: Tensor, y: Tensor) -> Tensor:
        time.sleep(0.1 if slow else 0.005)
        return criterion(model(x), y)

    codedgrad.barrier()
    for shards in gradient.steps(codedgrad.ShardSampler(data, 16)):
        gradient.backward(loss, shards)
        model.zero_grad()
    gradient.close()
    reports = gradient.record.reports
    if codedgrad.rank() // group_size() == groups() - 1:
        assert sum(r.abandoned or r.fast_forwarded for r in reports) >= 2
    else:
        assert sorted(r.step_s for r in reports)[2] < 0.35


def test_resume_from_a_checkpoint() -> None:
    def go(model: nn.Module, gradient: codedgrad.CodedGradient, epoch: int) -> None:
        sampler = codedgrad.ShardSampler(dataset(), 48, seed=SEED)
        sampler.set_epoch(epoch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for shards in gradient.steps(sampler):
            gradient.backward(lambda x, y: criterion(model(x), y), shards)
            optimizer.step()
            optimizer.zero_grad()

    def start() -> tuple[nn.Module, codedgrad.CodedGradient]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.3))
        how: Any = {"local_group": group_size(), "same_bits": True}
        return model, codedgrad.CodedGradient(model, **how)

    model, gradient = start()
    codedgrad.broadcast_parameters(model.state_dict())
    go(model, gradient, 0)
    file = io.BytesIO()
    torch.save([model.state_dict(), gradient.state_dict()], file)
    go(model, gradient, 1)
    gradient.close()
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again, gradient = start()
    again.load_state_dict(weights)
    gradient.load_state_dict(state)
    assert gradient.step == 3
    go(again, gradient, 1)
    gradient.close()
    assert torch.equal(model[1].weight, again[1].weight)


def test_two_models_take_turns() -> None:
    torch.manual_seed(1)
    first = nn.Linear(6, 3)
    second = copy.deepcopy(first).double()
    both = [
        codedgrad.CodedGradient(m, local_group=group_size(), faults=STORM)
        for m in (first, second)
    ]
    data = TensorDataset(torch.randn(96, 6), torch.randint(0, 3, (96,)))
    for shards in both[0].steps(codedgrad.ShardSampler(data, 24)):
        both[0].backward(lambda x, y: criterion(first(x), y), shards)
        both[1].backward(lambda x, y: criterion(second(x.double()), y), shards)
        torch.testing.assert_close(first.weight.grad.double(), second.weight.grad)
        for model in (first, second):
            model.zero_grad()
    for gradient in both:
        gradient.close()


def test_the_log_has_one_file_per_group() -> None:
    # Not pytest's tmp_path: processes that clean up its folders meet there.
    with tempfile.TemporaryDirectory() as mine:
        gradient = coded_with_log(everywhere(mine)[0] + "/log")
        codedgrad.barrier()
        assert len(gradient.record.reports) == 3
        if codedgrad.rank() == 0:
            names = sorted(p.name for p in Path(mine, "log").iterdir())
            assert names == [f"worker-{g}.csv" for g in range(groups())]
        codedgrad.barrier()


def coded_with_log(folder: str) -> codedgrad.CodedGradient:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    gradient = codedgrad.CodedGradient(model, local_group=group_size(), log=folder)
    for shards in gradient.steps(codedgrad.ShardSampler(dataset(), 48)):
        gradient.backward(lambda x, y: criterion(model(x), y), shards)
    gradient.close()
    return gradient


def test_waits_say_for_whom(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose leader is away says so, and goes on when it is back."""
    if codedgrad.size() == 1:
        return

    def early(*args: Any, **words: Any) -> Waiting:
        return Waiting(*args, **{**words, "quiet_s": 1.0})

    monkeypatch.setattr(channel, "Waiting", early)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    gradient = codedgrad.CodedGradient(model, local_group=group_size())
    leads = codedgrad.rank() % group_size() == 0
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        for shards in gradient.steps(codedgrad.ShardSampler(dataset(), 48)):
            if leads and gradient.step == 1:
                time.sleep(3.0)
            gradient.backward(lambda x, y: criterion(model(x), y), shards)
        gradient.close()
    said = [r.getMessage() for r in caplog.records if r.name == "codedgrad"]
    if not leads:
        assert any("to begin step 1 for worker(s)" in text for text in said), said
