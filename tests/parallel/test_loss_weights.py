"""Loss functions that return (loss, weight): the mean over all tokens of the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import DELAYS, everywhere

import codedgrad
from codedgrad import codes

BATCH, LENGTH, IGNORED = 40, 24, -100
criterion = nn.CrossEntropyLoss()  # NaN where all labels are ignored


def data(empty: int) -> tuple[Tensor, Tensor]:
    """Sequences of very different lengths, of which the first `empty` have no label."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3 * BATCH, LENGTH, 6, generator=generator)
    y = torch.randint(0, 4, (3 * BATCH, LENGTH), generator=generator)
    lengths = torch.randint(0, LENGTH, (len(y),), generator=generator) ** 3
    lengths = lengths // LENGTH**2 + 1
    lengths[:empty] = 0
    y[torch.arange(LENGTH)[None] >= lengths[:, None]] = IGNORED
    return x, y


def build(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.Tanh(), nn.Linear(16, 4))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return criterion(model(x.flatten(0, 1)), y.flatten())


KINDS = {
    "tensor": lambda y: (y != IGNORED).sum(),
    "int": lambda y: int((y != IGNORED).sum()),
    "numpy": lambda y: np.float32((y != IGNORED).sum()),
    "fraction": lambda y: (y != IGNORED).float().mean() * len(y) * 1e-3,
}


def gradients(
    kind: str, empty: int, code: codes.Code | None = None, **how: Any
) -> tuple[list[list[Tensor]], list[float]]:
    model = build()
    coded = codedgrad.CodedGradient(model, code, **how)
    found, losses = [], []
    sampler = codedgrad.ShardSampler(data(empty), BATCH, shuffle=False)
    for shards in coded.steps(sampler):
        loss = coded.backward(
            lambda x, y: (loss_of(model, x, y), KINDS[kind](y)), shards
        )
        found.append([p.grad.clone() for p in model.parameters()])
        losses.append(float(loss))
        model.zero_grad()
    coded.close()
    assert len(set(everywhere(str([[g.tolist() for g in f] for f in found])))) == 1
    return found, losses


def truth(empty: int) -> tuple[list[list[Tensor]], list[float]]:
    """One process over all tokens."""
    model, (x, y) = build(), data(empty)
    found, losses = [], []
    for begin in range(0, len(x), BATCH):
        loss = loss_of(model, x[begin : begin + BATCH], y[begin : begin + BATCH])
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
        losses.append(float(loss.detach()))
        model.zero_grad()
    return found, losses


def check(got: Any, want: Any, tolerance: float = 1e-6) -> None:
    for a, b in zip(got[0], want[0], strict=True):
        largest = max(float(g.abs().max()) for g in b)
        for g, w in zip(a, b, strict=True):
            assert float((g - w).abs().max()) <= tolerance * largest
    assert got[1] == pytest.approx(want[1], rel=max(1e-5, tolerance))


@pytest.mark.parametrize("same_bits", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_process_over_all_tokens(kind: str, same_bits: bool) -> None:
    faults = "" if codedgrad.size() == 1 else DELAYS
    how: Any = {"same_bits": same_bits, "faults": faults, "patience": 0.0}
    # With 13 of 40 sequences empty, some micro-batches and shards weigh nothing.
    check(gradients(kind, 13, **how), truth(13))


def test_wires_and_codes() -> None:
    n, want = codedgrad.size(), truth(5)
    for wire, tolerance in (("bfloat16", 2e-2), ("float16", 4e-3)):
        check(gradients("int", 5, wire=wire), want, tolerance)
    check(gradients("int", 5, codes.cyclic(n, stragglers=min(1, n - 1))), want, 5e-6)
    check(gradients("int", 5, codes.fractional(n, copies=n)), want)


def test_with_equal_weights_it_is_the_plain_mean() -> None:
    model = build(norm=True)
    coded = codedgrad.CodedGradient(model, patience=100.0)
    after = []
    for weighted in (False, True):
        model.load_state_dict(build(norm=True).state_dict())
        for shards in coded.steps(codedgrad.ShardSampler(data(0), BATCH)):

            def loss(x: Tensor, y: Tensor, weighted: bool = weighted) -> Any:
                value = loss_of(model, x, y)
                return (value, 7.0 * len(x)) if weighted else value

            coded.backward(loss, shards)
            after.append([p.grad.clone() for p in model.parameters()])
            after[-1] += [b.double() for b in model.buffers()]
            model.zero_grad()
    coded.close()
    for plainly, weighted_so in zip(after[:3], after[3:], strict=True):
        torch.testing.assert_close(plainly, weighted_so, rtol=1e-5, atol=1e-6)


def test_a_step_that_weighs_nothing_has_no_gradient() -> None:
    model = build(norm=True)
    before = [b.clone() for b in model.buffers()]
    coded = codedgrad.CodedGradient(model)
    shards = next(
        coded.steps(codedgrad.ShardSampler(data(BATCH), BATCH, shuffle=False))
    )
    loss = coded.backward(
        lambda x, y: (loss_of(model, x, y), (y != IGNORED).sum()), shards
    )
    assert float(loss) == 0.0
    assert all(p.grad is None for p in model.parameters())
    assert all(map(torch.equal, before, model.buffers()))
    coded.close()


def test_weights_in_some_passes_only_are_refused_by_all() -> None:
    model = build()
    coded = codedgrad.CodedGradient(model, same_bits=True, patience=100.0)
    shards = next(coded.steps(codedgrad.ShardSampler(data(0), BATCH, shuffle=False)))
    first = shards.fetch(0)[0]

    def loss(x: Tensor, y: Tensor) -> Any:
        value = loss_of(model, x, y)
        return value if torch.equal(x, first) else (value, len(x))

    with pytest.raises(codedgrad.MismatchError, match="Return a weight always"):
        coded.backward(loss, shards)
    coded.close()


@pytest.mark.parametrize("weight", [1e-4, 1.0, 1e4])
def test_the_first_step_of_a_float16_wire_has_room_for_any_weights(
    weight: float,
) -> None:
    """Every worker finds out how much a step weighs before it sends a gradient."""
    samples = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).half()
    found = []
    for wire in ("float32", None):
        torch.manual_seed(0)
        model = nn.Linear(8, 8).half()
        with codedgrad.CodedGradient(model, wire=wire) as coded:
            for shards in coded.steps(codedgrad.ShardSampler((samples,), 8)):
                coded.backward(
                    lambda x, m=model: (
                        (m(x) * 300).float().sum(1).mean(),
                        weight * len(x),
                    ),
                    shards,
                )
                assert model.weight.grad is not None
                found.append(model.weight.grad.float())
                model.zero_grad()
    for want, got in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(got, want, rtol=4e-3, atol=0.5)
