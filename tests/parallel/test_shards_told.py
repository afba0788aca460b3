"""A shard is a part of the batch: where that makes a difference, worker 0 says so."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from parallel.training import everywhere
from test_loss_functions import OWN, data, net, noisy, summed, train, weighted
from torch import Tensor
from torch.nn import functional as F

import codedgrad
from codedgrad import codes


def mean_of_long(out: Tensor, y: Tensor) -> Tensor:
    w = out.detach().square().sum(1)  # as many tokens as that
    return (w * F.cross_entropy(out, y, reduction="none")).sum() / w.sum()


def of_shards(loss: Any, caplog: pytest.LogCaptureFixture, **how: Any) -> list[str]:
    """How often each worker was told that shards are another function."""
    model, n = net(), codedgrad.size()
    code = how.pop("code", None) or codes.spread(n, micro=1)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(model, lambda x, y: loss(model(x), y), code=code, **how)
    said = [r for r in caplog.records if "as with DDP" in r.getMessage()]
    return everywhere(str(len(said)))


@pytest.mark.parametrize("make", [lambda n: codes.spread(n, micro=1), codes.uncoded])
@pytest.mark.parametrize("samples", [OWN, 1])  # 1: a shard is one sample
@pytest.mark.parametrize("kind", [mean_of_long, summed])
def test_a_loss_of_shards_is_told_once(
    kind: Any, samples: int, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    n = codedgrad.size()
    sampler = codedgrad.ShardSampler(data(), samples * n)
    code = make(n)
    said = of_shards(kind, caplog, sampler=sampler, code=code)
    # A single sample has no neighbour where the only worker's batch is one.
    assert said == (["1"] + ["0"] * (n - 1) if n > 1 else ["0"])


@pytest.mark.parametrize("kind", [mean_of_long, summed])
def test_a_shard_of_one_sample_is_told_with_the_default_code(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    n = codedgrad.size()
    sampler = codedgrad.ShardSampler(data(), n)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        of_shards(kind, caplog, sampler=sampler, code=codes.spread(n))
    texts = " ".join(everywhere(caplog.text))
    assert ("another function of a" in texts) == (n > 1)


@pytest.mark.parametrize("same_bits", [False, True])
@pytest.mark.parametrize("kind", [F.cross_entropy, weighted, noisy])
def test_a_mean_of_shards_is_not_told(
    kind: Any, same_bits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert "1" not in of_shards(kind, caplog, same_bits=same_bits)


def test_the_user_has_said_that_shards_are_meant(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert "1" not in of_shards(summed, caplog, pieces=False)
