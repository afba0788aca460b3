"""Metrics beside the loss: those of one process, on every worker."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import DELAYS, everywhere

import codedgrad
from codedgrad import codes

BATCH, CLASSES = 46, 3  # shards and micro-batches of unequal sizes
SLOW = "slow:worker=1,factor=8"
criterion = nn.CrossEntropyLoss()


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels, and a weight of each sample, 0 for many."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5 * BATCH + 7, 6, generator=generator)
    y = torch.randint(0, CLASSES, (len(x),), generator=generator)
    w = torch.randint(0, 9, (len(x),), generator=generator)
    w[torch.arange(len(w)) % BATCH < 5] = 0
    return x, y, w


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def measured(out: Tensor, y: Tensor) -> dict[str, Any]:
    right = out.argmax(1) == y
    return {
        "accuracy": right.float().mean(),
        "right": right.sum(),
        "samples": len(y),
        "confidence": out.softmax(1).amax(1).mean(),
        "numpy": np.float64(right.double().mean()),
    }


def train(weighted: bool, code: Any = None, **how: Any) -> list[dict[str, float]]:
    """The metrics of every step; parameters do not change."""
    model = build()
    coded = codedgrad.CodedGradient(model, code, **how)

    def loss_fn(x: Tensor, y: Tensor, w: Tensor) -> Any:
        out = model(x)
        if not weighted:
            return criterion(out, y), measured(out, y)
        losses = nn.functional.cross_entropy(out, y, reduction="none")
        right = ((out.argmax(1) == y) * w).sum() / w.sum().clamp(min=1)
        found = {"accuracy": right, "samples": len(y)}
        return (losses * w).sum() / w.sum(), w.sum(), found

    found = []
    for shards in coded.steps(codedgrad.ShardSampler(data(), BATCH, shuffle=False)):
        coded.backward(loss_fn, shards)
        found.append(coded.metrics)
        model.zero_grad()
    coded.close()
    assert len(set(everywhere(str(found)))) == 1
    return found


def truth(weighted: bool) -> list[dict[str, float]]:
    """One process; counts in integers."""
    model, (x, y, w) = build(), data()
    found = []
    with torch.no_grad():
        for begin in range(0, len(x), BATCH):
            part = slice(begin, begin + BATCH)
            out, labels, weights = model(x[part]), y[part], w[part]
            right = out.argmax(1) == labels
            if weighted:
                mean = int((right * weights).sum()) / int(weights.sum())
                found.append({"accuracy": mean, "samples": float(len(labels))})
                continue
            mean = int(right.sum()) / len(labels)
            found.append(
                {
                    "accuracy": mean,
                    "confidence": float(out.softmax(1).amax(1).double().mean()),
                    "numpy": mean,
                    "right": float(right.sum()),
                    "samples": float(len(labels)),
                }
            )
    return found


def check(found: list[dict[str, float]], want: list[dict[str, float]]) -> None:
    for got, wanted in zip(found, want, strict=True):
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            if name == "confidence":
                assert got[name] == pytest.approx(value, rel=1e-6)
            else:
                assert got[name] == value  # every bit


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("same_bits", [False, True])
def test_they_are_one_process_s(same_bits: bool, weighted: bool) -> None:
    alone = codedgrad.size() == 1
    for faults, patience in (("", 100.0), (DELAYS, 0.0), (SLOW, 0.1)):
        how: Any = {"same_bits": same_bits, "faults": "" if alone else faults}
        found = train(weighted, patience=patience, **how)
        check(found, truth(weighted))


def test_wires_codes_and_several_buckets() -> None:
    n = codedgrad.size()
    for wire in ("bfloat16", "float16"):
        check(train(False, wire=wire), truth(False))
    check(train(True, codes.fractional(n, copies=n)), truth(True))
    check(train(False, bucket_mb=1e-4), truth(False))  # the metrics lie in several


def test_steps_with_and_without() -> None:
    model = build()
    coded = codedgrad.CodedGradient(model)
    kinds: list[Any] = [None, {"a": 1}, {}, {"b": 2.5, "a": 1.0}, {"a": 1}]
    sampler = codedgrad.ShardSampler(data(), BATCH, drop_last=True)
    for found, shards in zip(kinds, coded.steps(sampler), strict=True):

        def loss_fn(x: Tensor, y: Tensor, _w: Tensor, found: Any = found) -> Any:
            loss = criterion(model(x), y)
            return loss if found is None else (loss, found)

        coded.backward(loss_fn, shards)
        names = sorted(found or {})
        assert list(coded.metrics) == names
        for name in names:
            value, got = found[name], coded.metrics[name]
            assert got >= value if isinstance(value, int) else got == value
    coded.close()


def test_where_nothing_weighs_anything_a_mean_is_nan_and_counts_count() -> None:
    model = build()
    coded = codedgrad.CodedGradient(model)
    shards = next(coded.steps(codedgrad.ShardSampler(data(), BATCH)))

    def loss_fn(x: Tensor, y: Tensor, _w: Tensor) -> Any:
        return criterion(model(x), y), 0, {"mean": math.nan, "samples": len(y)}

    coded.backward(loss_fn, shards)
    assert coded.metrics["samples"] == BATCH
    assert math.isnan(coded.metrics["mean"])
    coded.close()


@pytest.mark.parametrize("kind", ["missing", "name", "count"])
def test_other_metrics_in_some_passes_are_refused_by_all(kind: str) -> None:
    model = build()
    coded = codedgrad.CodedGradient(model, same_bits=True, patience=100.0)
    sampler = codedgrad.ShardSampler(data(), BATCH, shuffle=False)
    shards = next(coded.steps(sampler))
    first = shards.fetch(0)[0]
    other = {"missing": {}, "name": {"precision": 0.5}, "count": {"accuracy": 1}}

    def loss_fn(x: Tensor, y: Tensor, _w: Tensor) -> Any:
        found = other[kind] if torch.equal(x, first) else {"accuracy": 0.5}
        return criterion(model(x), y), found

    with pytest.raises(codedgrad.MismatchError) as error:
        coded.backward(loss_fn, shards)
    assert "'accuracy' (a mean)" in str(error.value)
    shown = {"missing": "no metric", "name": "'precision'", "count": "(a count)"}
    assert shown[kind] in str(error.value)
    assert all(p.grad is None for p in model.parameters())
    coded.close()


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "'a'"), (math.inf, "'a'")])
def test_a_metric_that_is_not_finite(value: float, reason: str) -> None:
    model = build()
    shards_of = codedgrad.ShardSampler(data(), BATCH)

    def loss_fn(x: Tensor, y: Tensor, _w: Tensor) -> Any:
        return criterion(model(x), y), {"a": value, "b": 2}

    coded = codedgrad.CodedGradient(model, on_nonfinite="continue")
    coded.backward(loss_fn, next(coded.steps(shards_of)))
    assert not math.isfinite(coded.metrics["a"])
    coded.close()
    if codedgrad.size() == 1:
        coded = codedgrad.CodedGradient(model)
        with pytest.raises(codedgrad.NonFiniteError, match=f"{reason} of step 0"):
            coded.backward(loss_fn, next(coded.steps(shards_of)))
        coded.close()
