"""The own pass is whole (`same_bits=False`, the default); only helpers cut shards.

All workers hold the same bits in every step, which are those of the whole batch up to
rounding, whoever is late.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import BATCH, DELAYS, everywhere

import codedgrad
from codedgrad import codes

criterion = nn.CrossEntropyLoss()


def data() -> TensorDataset:
    """Two steps of 48, and one of 17, enough for two samples of each of 8 shards."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(113, 6, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (113,), generator=generator))


def deep(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 24), *norm, nn.Tanh(), nn.Linear(24, 3))


def alone() -> bool:
    return codedgrad.size() == 1


def bits(model: nn.Module) -> str:
    h = hashlib.sha256()
    for t in model.state_dict().values():
        h.update(t.detach().cpu().numpy().tobytes())
    return h.hexdigest()


class Seen:
    """Trains, and notes every gradient, all bits after each step, and batch sizes."""

    def __init__(self, model: nn.Module, steps: int, **how: Any) -> None:
        code = how.pop("code", codes.spread(codedgrad.size(), micro=4))
        batch = how.pop("batch", BATCH)
        coded = codedgrad.CodedGradient(model, code, **how)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sampler = codedgrad.ShardSampler(data(), batch)
        self.gradients: list[Tensor] = []
        self.bits: list[str] = []
        self.sizes: set[int] = set()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            self.sizes.add(len(x))
            return criterion(model(x), y)

        while coded.step < steps:
            sampler.set_epoch(coded.step // 3)
            for shards in coded.steps(sampler):
                coded.backward(loss, shards)
                flat = [p.grad.flatten() for p in model.parameters()]
                self.gradients.append(torch.cat(flat).clone())
                optimizer.step()
                optimizer.zero_grad()
                self.bits.append(bits(model))
        self.helped = sum(r.redundant_passes for r in coded.record.reports)
        self.code = coded.code
        coded.close()


def plain(model: nn.Module, steps: int, batch: int = BATCH) -> list[Tensor]:
    """The gradients of a plain loop over whole batches, in one process."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampler = codedgrad.ShardSampler(data(), batch)
    gradients: list[Tensor] = []
    while len(gradients) < steps:
        sampler.set_epoch(len(gradients) // 3)
        for shards in sampler.steps(1):
            x, y = shards.fetch(0)
            criterion(model(x), y).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            optimizer.step()
            model.zero_grad()
    return gradients


@pytest.mark.parametrize("how", [{}, {"bucket_mb": 0.0005}, {"overlap": False}])
def test_all_workers_hold_the_bits_of_the_batch_up_to_rounding(
    how: dict[str, Any],
) -> None:
    steps = 30
    seen = Seen(deep(), steps, faults="" if alone() else DELAYS, patience=0.0, **how)
    assert len(set(everywhere(str(seen.bits)))) == 1
    want = plain(deep(), steps)
    # From one state to the next; over many steps rounding differences grow.
    for got, truth in zip(seen.gradients[:3], want, strict=False):
        assert float((got - truth).norm() / truth.norm()) < 2e-6
    assert float((seen.gradients[-1] - want[-1]).norm() / want[-1].norm()) < 1e-4
    helped = sum(map(int, everywhere(str(seen.helped))))
    assert alone() or helped > 0


def test_own_passes_are_whole_and_helpers_take_pieces() -> None:
    calm = Seen(deep(), 3, patience=100.0)
    n, rank = codedgrad.size(), codedgrad.rank()
    assert calm.sizes <= {codedgrad.data.even(b, n)[rank] for b in (BATCH, 113 % BATCH)}
    stormy = Seen(deep(), 12, faults="" if alone() else DELAYS, patience=0.0)
    if stormy.helped:
        assert min(stormy.sizes) <= codedgrad.data.even(BATCH, 4 * n)[0]
    pieces = Seen(deep(), 3, patience=100.0, same_bits=True)
    assert max(pieces.sizes) == codedgrad.data.even(BATCH, 4 * n)[4 * rank]


@pytest.mark.parametrize("pieces", ["auto", False])
def test_whole_shards_have_the_same_bits_whoever_is_late(pieces: Any) -> None:
    """Batch norm by itself, another model by argument; dropout has the same masks."""
    runs = []
    for faults in ("", "" if alone() else DELAYS):
        norm = nn.BatchNorm1d(24) if pieces == "auto" else nn.Dropout(0.3)
        how: Any = {"faults": faults, "patience": 0.0, "pieces": pieces}
        runs.append(Seen(deep(norm), 12, **how))
    assert runs[0].bits == runs[1].bits
    assert len(set(everywhere(str(runs[1].bits)))) == 1
    shards = [codedgrad.data.even(n, codedgrad.size()) for n in (BATCH, 113 % BATCH)]
    assert runs[1].sizes <= set(shards[0] + shards[1])


def test_every_code_is_the_batch_up_to_rounding() -> None:
    n = codedgrad.size()
    for code in (
        codes.uncoded(n, micro=3),
        codes.scheduled(n, copies=min(2, n), micro=2),
        codes.fractional(n, copies=n, micro=2),
        codes.cyclic(n, stragglers=min(1, n - 1)),
    ):
        seen = Seen(deep(), 3, code=code, faults="" if alone() else DELAYS)
        assert len(set(everywhere(str(seen.bits)))) == 1
        for got, truth in zip(seen.gradients, plain(deep(), 3), strict=True):
            assert float((got - truth).norm() / truth.norm()) < 5e-6, code.describe()


def test_fewer_samples_than_pieces() -> None:
    """The default code, and four pieces for shards of one or two samples."""
    n = codedgrad.size()
    late = "" if alone() else DELAYS
    for code in (None, codes.spread(n, micro=4)):
        seen = Seen(deep(), 6, code=code, batch=n + 1, faults=late, patience=0.0)
        assert seen.code.micro == (4 if code else codes.usual_pieces(n))
        assert len(set(everywhere(str(seen.bits)))) == 1
        for got, truth in zip(seen.gradients, plain(deep(), 6, n + 1), strict=True):
            assert float((got - truth).norm() / truth.norm()) < 5e-6


def test_a_group_makes_whole_passes_of_its_members() -> None:
    n = codedgrad.size()
    size = 2 if n % 2 == 0 else 1
    code = codes.spread(n // size, micro=4)
    how: Any = {"local_group": size, "faults": "" if n // size == 1 else DELAYS}
    seen = Seen(deep(), 6, code=code, patience=0.0, **how)
    assert len(set(everywhere(str(seen.bits)))) == 1
    for got, truth in zip(seen.gradients[:3], plain(deep(), 3), strict=True):
        assert float((got - truth).norm() / truth.norm()) < 2e-6


def test_settings_must_agree_and_be_known() -> None:
    for how in ({"same_bits": "yes"}, {"pieces": "none"}):
        with pytest.raises(codedgrad.ConfigError, match="must be"):
            codedgrad.step.pieces.code_of(
                codes.spread(2), [deep()], codedgrad.settings.RunSettings(**how)
            )
