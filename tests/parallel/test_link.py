"""What a message costs, measured in the job itself."""

from __future__ import annotations

import torch
from codedgrad.settings import ExchangeSettings
from torch import nn
from training import everywhere

import codedgrad
from codedgrad.exchange import link
from codedgrad.job import runtime
from codedgrad.row.layout import Layout


def test_all_workers_find_the_same() -> None:
    here = runtime.current()
    found = link.measure(here)
    assert 1e-7 <= found.s_per_mb < 1.0  # the least where a busy machine hides it
    assert 1e-6 <= found.latency_s < 1.0
    assert len(set(everywhere(repr(found)))) == 1
    assert link.measure(here) is found


def test_only_large_models_are_cut_by_it() -> None:
    here = runtime.current()
    for width, bucket_mb in ((100, None), (1200, None), (1200, 2.0)):
        model = nn.Linear(width, width)
        payload = Layout(
            model.named_parameters(),
            workers=here.size,
            settings=ExchangeSettings(bucket_mb=bucket_mb),
        )
        before = payload.bucket_starts
        link.cut(here, payload)
        assert len(set(everywhere(str(payload.bucket_starts)))) == 1
        asked = bucket_mb is None and width > 1000 and here.size > 1
        assert payload.worth_measuring() == asked
        if not asked:
            assert payload.bucket_starts == before


def test_a_large_model_trains() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1200, 1200, bias=False)
    codedgrad.broadcast_parameters(model.state_dict())
    gradient = codedgrad.CodedGradient(model, codedgrad.codes.uncoded(codedgrad.size()))
    n = codedgrad.size()
    data = (torch.ones(4 * n, 1200), torch.arange(4.0 * n))
    sampler = codedgrad.ShardSampler(data, 4 * n, shuffle=False)
    for shards in gradient.steps(sampler):
        gradient.backward(lambda x, y: (model(x).mean(1) * y).mean(), shards)
    want = float(data[1].mean()) / 1200
    assert torch.allclose(model.weight.grad, torch.tensor(want), rtol=1e-5)
    gradient.close()
