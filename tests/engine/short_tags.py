"""A job of several processes whose MPI offers few bits of tag; for test_short_tags.py.

Worker 0 prints the bits that have passed. Each training is compared with torch's in one
process.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor, nn

import codedgrad
from codedgrad import codes

STEPS, SAMPLES, BATCH = 12, 240, 80


def build() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 32, generator=generator)
    y = torch.randn(SAMPLES, 8, generator=generator)
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, 8)), x, y


def descend(model: nn.Module) -> None:
    """A step by hand: torch's first optimizer imports for longer than this takes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    model.zero_grad()


def train(**settings: object) -> tuple[Tensor, bool]:
    """Returns all parameters, and whether messages had headers."""
    model, x, y = build()
    code = codes.spread(codedgrad.size(), micro=4)
    coded = codedgrad.CodedGradient(model, code, bucket_mb=0.0005, **settings)
    sampler = codedgrad.ShardSampler((x, y), BATCH, shuffle=False)
    while coded.step < STEPS:
        for shards in coded.steps(sampler):
            coded.backward(lambda a, b: (model(a) - b).square().mean(), shards)
            descend(model)
    wide = bool(coded._exchange._core.long_addresses)
    coded.close()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]), wide


def alone() -> Tensor:
    model, x, y = build()
    for step in range(STEPS):
        at = step * BATCH % SAMPLES
        (model(x[at : at + BATCH]) - y[at : at + BATCH]).square().mean().backward()
        descend(model)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def main() -> None:
    torch.set_num_threads(1)
    want = alone()
    for bits, window in ((15, 16), (23, 300)):
        os.environ["CODEDGRAD_TAG_BITS"] = str(bits)
        codedgrad.init(timeout_s=30)
        faults = f"slow:worker={codedgrad.size() - 1},factor=4"
        got, wide = train(window=window, faults=faults)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert wide, f"{bits} bits were enough"
        first = codedgrad.rank() == 0
        codedgrad.shutdown()
        if first:
            sys.stdout.write(f"{bits}\n")


if __name__ == "__main__":
    main()
