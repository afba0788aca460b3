"""Waits that must not be given up, although they last longer than the grace."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

import codedgrad
from codedgrad import codes
from codedgrad.job import progress

GRACE_S = 2.0


def test_a_long_pass_is_waited_for_in_a_step_and_in_a_barrier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody may take the straggler, or those who are ahead of it, for stuck.

    In the first step nobody can help, in the second the others do and are in the
    barrier before the straggler has come out of its pass.
    """
    monkeypatch.setattr(progress, "GRACE_S", GRACE_S)
    n, data = codedgrad.size(), (torch.ones(8 * codedgrad.size(), 2),)
    last = codedgrad.rank() == n - 1
    for code in (codes.uncoded(n, micro=2), codes.spread(n, micro=2)):
        model = nn.Linear(2, 1)
        nn.init.ones_(model.weight)
        slept = False

        def loss(x: Tensor, model: nn.Module = model) -> Tensor:
            nonlocal slept
            if last and not slept:
                slept = True
                time.sleep(GRACE_S + 1.0)
            return model(x).mean()

        coded = codedgrad.CodedGradient(model, code)
        for shards in coded.steps(codedgrad.ShardSampler(data, len(data[0]))):
            coded.backward(loss, shards)
        codedgrad.barrier()
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [[1.0, 1.0]]
        coded.close()
