"""Fit the learned decoder's network on recorded gradients; writes pretrained.npz.

    python benchmarks/fit_decoder.py                 # about 10 minutes on one core
    python benchmarks/fit_decoder.py --toy --out /some/folder/net.npz

Recordings of FIT_TASKS are made, played back with shards late in many ways, and the
network is fitted to choose among the candidates so that the error is low from the first
steps on and never worse than the best fixed decoder or online least squares. The
tasks of `bench_decoder.py`, on which it is judged, are other ones.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import codedgrad
from codedgrad.lab.decoders import candidates, network, record, replay, tasks
from codedgrad.lab.decoders.gram import squared_error
from codedgrad.lab.decoders.predictor import unit
from codedgrad.lab.decoders.statistics import Statistics

FIT_TASKS = ("logistic", "mlp", "cancer", "diabetes")
LS = candidates.NAMES.index("online_ls")
NAMED = 6  # the first candidates: zero, rescale, momentum, previous, stale, saga
# (missing of k, pattern, delay)
SCENARIOS = (
    (lambda _k: 1, "random", 1),
    (lambda k: k // 2, "random", 1),
    (lambda _k: 1, "fixed", 1),
    (lambda k: k // 4, "bursty", 1),
    (lambda _k: 1, "fixed", 6),
    (lambda k: k // 4, "random", 4),
)
PAST_KEEP = 0.95  # as in codedgrad.lab.decoders.predictor


def recordings(toy: bool) -> list[tuple[str, replay.Recording]]:
    """Record several tasks, batch sizes, partitions and numbers of shards."""
    out = []
    for name in FIT_TASKS[:1] if toy else FIT_TASKS:
        for partition in record.PARTITIONS:
            for shards, batch, adam in ((8, 32, False), (8, 6, True), (16, 16, False)):
                if toy and shards == 16:
                    continue
                run = record.Run(
                    partition,
                    shards=shards,
                    steps=60 if toy else 160,
                    batch=min(batch, 24 if name == "diabetes" else batch),
                    micro=2,
                    seed=len(out),
                    adam=adam,
                )
                arrays = record.record(tasks.task(name), run)
                grads = arrays["grads"]
                grads = grads.reshape(len(grads), shards, 2, -1)
                recording = replay.Recording(grads, arrays["tensor_sizes"])
                out.append((f"{name} {partition} {shards} {batch}", recording))
    return out


def partial_erasures(k: int, steps: int, seed: int) -> np.ndarray:
    """Return who has arrived [steps, k, 2] if late shards are half done.

    Some of the late shards, or all of them, have finished one of two micro-batches.
    """
    random = np.random.default_rng(seed)
    missing = (1, k // 4, k // 2)[seed % 3]
    pattern = "fixed" if seed % 4 == 1 else "random"
    arrived = replay.erasures(steps, k, max(1, missing), pattern, seed)
    both = np.repeat(arrived[:, :, None], 2, axis=2)
    both[:, :, 0] |= random.random((steps, k)) < (0.6, 1.0)[seed % 2]
    return both


def sequence(
    recording: replay.Recording, arrived: np.ndarray, delay: int
) -> dict[str, Any]:
    """Return what the network sees and is judged by, stacked over the steps."""
    stats = Statistics(len(recording.bounds) - 1)
    rows: list[dict[str, Any]] = []
    chosen: dict[int, Any] = {}
    for kind, step in replay.play(recording, arrived, delay):
        inner = step.inner
        if kind == "late":
            stats.learn(inner, chosen.pop(step.number), step.label)
            continue
        c = stats.squares.candidates(inner)
        f, context = stats.features(inner, c)
        norm = float(step.truth @ step.truth) + 1e-30
        scale = inner.rho**2 / norm
        error = squared_error(
            c, inner.gram[:, None], step.label.target[:, None], step.label.norm[:, None]
        )
        rows.append(
            {
                "f": f,
                "context": context,
                "labels": stats.labels,
                "gram": inner.gram * scale,
                "target": step.label.target * scale,
                "norm": step.label.norm * scale,
                "c": c.clip(-30, 30),
                "error": error.sum(axis=0) * scale,
                "left_gram": inner.left_gram,
                "left_target": inner.left_target,
                "left_norm": inner.left_norm,
                "unit": unit(inner) / norm,
            }
        )
        chosen[step.number] = c
        stats.squares.replay(inner)
    out = {
        key: torch.tensor(np.stack([r[key] for r in rows])).float() for key in rows[0]
    }
    out["delay"] = delay
    return out


class Net(nn.Module):
    """A differentiable twin of codedgrad.lab.decoders.network.Network."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(network.CONTEXT, network.HIDDEN)
        self.two = nn.Linear(network.HIDDEN, network.OUTPUTS)
        with torch.no_grad():
            self.two.weight.mul_(0.3)
            self.two.bias.zero_()

    def forward(self, d: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return w, t and s as Network does."""
        out = self.two(torch.tanh(self.one(d["context"])))
        n = network.FEATURES
        b = network.STRONGEST * torch.tanh(out[..., n:-2])
        b = b * (10.0 / (10.0 + d["labels"]))[:, None, None]
        score = b - (d["f"] * F.softplus(out[..., :n]).unsqueeze(-2)).sum(-1)
        t = torch.sigmoid(out[..., -2])
        return torch.softmax(score, -1), t, 2.0 * torch.tanh(out[..., -1])

    def save(self, path: Path) -> None:
        """Write the weights as an .npz archive that Network reads."""
        names = zip(network.SHAPES, self.parameters(), strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {n: p.detach().numpy().astype(np.float32) for n, p in names}
        np.savez(path, **arrays)


def quad(c: Tensor, gram: Tensor, target: Tensor, norm: Tensor) -> Tensor:
    """Return |x - V c|^2, as codedgrad.lab.decoders.gram.squared_error does."""
    square = (torch.matmul(gram, c.unsqueeze(-1))[..., 0] * c).sum(-1)
    return (norm - 2.0 * (c * target).sum(-1) + square).clamp_min(0.0)


def loss_of(net: Net, d: dict[str, Any]) -> Tensor:
    """Return the loss of one recording.

    It asks for low errors relative to the best candidate's, early and late, for a good
    prediction of the error, and most of all for being no worse than least squares or
    the best named decoder.
    """
    w, t, s = net(d)
    c = (w.unsqueeze(-1) * d["c"]).sum(-2)
    e = quad(c, d["gram"], d["target"], d["norm"]).sum(1)
    r = d["error"]
    skip = len(e) // 10
    whole = torch.log(e[skip:].mean() / r[skip:].mean(0).min())
    early = torch.log(e[:50].mean() / r[:50].mean(0).min())
    each = torch.log((e + 1e-9) / (r[:, LS] + 1e-9)).mean()
    rival = torch.minimum(r[skip:, LS].mean(), r[skip:, :NAMED].mean(0).min())
    never = torch.relu(torch.log(e[skip:].mean() / rival))
    with torch.no_grad():
        left = quad(c, d["left_gram"], d["left_target"], d["left_norm"]).sum(1)
        left = torch.log(left / (d["left_norm"].sum(1) + 1e-30) + 1e-12)
        true = torch.log(e / (d["unit"] + 1e-30) + 1e-12)
        past = _past(true, left, d["delay"])
    guess = t.mean(1) * left + (1.0 - t.mean(1)) * past + s.mean(1)
    honest = F.smooth_l1_loss(guess[3:], true[3:])
    return whole + 0.7 * early + 0.2 * each + 4.0 * never + 0.15 * honest


def _past(true: Tensor, left: Tensor, delay: int) -> Tensor:
    """Return the predictor's l_past before every step."""
    out, total, weight = [], 0.0, 0.0
    for t in range(len(true)):
        if t >= delay:
            total = PAST_KEEP * total + float(true[t - delay])
            weight = PAST_KEEP * weight + 1.0
        out.append(total / weight if weight else float(left[t]))
    return torch.tensor(out)


def main() -> None:
    """Record, play the recordings, fit the network, and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = Path(codedgrad.__file__).parent / "exchange" / "pretrained.npz"
    parser.add_argument("--out", type=Path, default=shipped)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--epochs", type=int, default=35)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begin = time.time()
    data = []
    for i, (name, recording) in enumerate(recordings(args.toy)):
        steps, k = recording.grads.shape[:2]
        whole = replay.Recording(
            recording.grads.mean(2, keepdims=True), recording.sizes
        )
        pick = np.random.default_rng(i).permutation(len(SCENARIOS))[:3]
        for j in pick.tolist():
            missing, pattern, delay = SCENARIOS[j]
            arrived = replay.erasures(steps, k, max(1, missing(k)), pattern, i)
            data.append(sequence(whole, arrived, delay))
        data.append(sequence(recording, partial_erasures(k, steps, i), 1))
        print(f"{name}: {len(data)} sequences, {time.time() - begin:.0f} s", flush=True)
    net = Net()
    epochs = 2 if args.toy else args.epochs
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        total = 0.0
        for i in np.random.default_rng(epoch).permutation(len(data)).tolist():
            loss = loss_of(net, data[i])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        schedule.step()
        print(f"epoch {epoch}: mean loss {total / len(data):.4f}", flush=True)
    net.save(args.out)


if __name__ == "__main__":
    main()
