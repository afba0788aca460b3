"""A small real training job, coded and plain, for the same-bits tests.

`plain` is the truth: one process, no engine, no payload; it computes every
micro-batch itself and adds them up in the order of the code's tree.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from references import pass_rng
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.codes import Code, SumTree

SAMPLES = 101  # the last step of an epoch does not divide evenly
BATCH = 48
SEED = 11
DELAYS = (
    "random:seed=4,probability=0.15,factor=5;"
    "random:seed=9,probability=0.03,seconds=0.02"
)


class Net(nn.Module):
    """Batch norm, dropout, a tied weight, a frozen and an unused parameter."""

    def __init__(self, wide: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.mix = nn.Linear(16, 16)
        self.out = nn.Linear(64, 5)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(7))
        self.tied = self.mix.weight
        if wide:
            layers = [nn.Linear(64, wide), nn.Tanh(), nn.Linear(wide, 64)]
            self.wide = nn.Sequential(*layers)
        self.empty = nn.Parameter(torch.ones(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x))))
        x = self.mix(x.flatten(2)) + x.flatten(2) @ self.tied
        x = x.flatten(1)
        if hasattr(self, "wide"):
            x = x + self.wide(x)
        return self.out(x) * self.frozen.mean() + self.empty.sum()


def dataset(samples: int = SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 1, 4, 4, generator=generator)
    y = torch.randint(0, 5, (SAMPLES,), generator=generator)
    return TensorDataset(x[:samples], y[:samples])


def build(steps: int, wide: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """`wide`: units of one more layer, to fill several buckets."""
    torch.manual_seed(3)
    model = Net(wide)
    decay = [p for n, p in model.named_parameters() if "norm" not in n]
    rest = [p for n, p in model.named_parameters() if "norm" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest}], lr=1e-2
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[2e-2, 1e-2], total_steps=steps + 1
    )
    return model, optimizer, schedule


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Fingerprint of every bit of parameters, buffers and optimizer state."""
    h = hashlib.sha256()
    for name, t in model.state_dict().items():
        h.update(name.encode() + t.detach().cpu().contiguous().numpy().tobytes())
    for key, state in sorted(optimizer.state_dict()["state"].items()):
        for name in sorted(state):
            h.update(f"{key}{name}".encode() + state[name].cpu().numpy().tobytes())
    return h.hexdigest()


def everywhere(value: str) -> list[str]:
    """`value` of every worker."""
    blobs = codedgrad.job.runtime.current().gather(value.encode(), "in a test")
    return [b.decode() for b in blobs]


def coded(
    code: Code,
    steps: int,
    *,
    faults: str = "",
    each_step: Callable[[codedgrad.CodedGradient], None] | None = None,
    wide: int = 0,
    device: str = "cpu",
    **settings: Any,
) -> tuple[str, list[float]]:
    """Train with codedgrad, by default with the same bits; the digest and losses."""
    settings.setdefault("same_bits", True)
    model, optimizer, schedule = build(steps, wide)
    model.to(device)
    gradient = codedgrad.CodedGradient(
        model, code, seed=SEED, faults=faults, **settings
    )
    sampler = codedgrad.ShardSampler(dataset(), BATCH, seed=SEED)
    loss_fn = nn.CrossEntropyLoss()
    losses: list[float] = []
    epoch = 0
    while gradient.step < steps:
        sampler.set_epoch(epoch)
        for shards in gradient.steps(sampler):
            loss = gradient.backward(
                lambda x, y: loss_fn(model(x.to(device)), y.to(device)), shards
            )
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(float(loss))
            if each_step is not None:
                each_step(gradient)
            if gradient.step == steps:
                break
        epoch += 1
    gradient.close()
    return digest(model, optimizer), losses


_KNOWN: dict[Any, tuple[str, list[float]]] = {}


def plain(tree: SumTree, parts: int, steps: int, **how: Any) -> tuple[str, list[float]]:
    """As `compute_plain`, once for the same job: several tests compare with it."""
    nodes = (tree.left, tree.right, tree.parent, tree.start, tree.stop)
    key = (
        *(tuple(map(int, array)) for array in nodes),
        *(int(tree.root), parts, steps, *sorted(how.items())),
    )
    if key not in _KNOWN:
        _KNOWN[key] = compute_plain(tree, parts, steps, **how)
    digest, losses = _KNOWN[key]
    return digest, list(losses)


def compute_plain(
    tree: SumTree,
    parts: int,
    steps: int,
    *,
    samples: int = SAMPLES,
    wide: int = 0,
    wire: torch.dtype = torch.float32,
    rows: int = 1,
) -> tuple[str, list[float]]:
    """The same job in one process, by torch alone.

    Gradients are rounded to `wire` at every node of up to `rows` parts, and in the end.
    """
    model, optimizer, schedule = build(steps, wide)
    sampler = codedgrad.ShardSampler(dataset(samples), BATCH, seed=SEED)
    loss_fn = nn.CrossEntropyLoss()
    losses: list[float] = []
    step, epoch = 0, 0
    while step < steps:
        sampler.set_epoch(epoch)
        for shards in sampler.steps(parts):
            before = {n: b.clone() for n, b in model.named_buffers()}
            leaves = _leaves(model, loss_fn, shards, step)
            root = _root(tree, leaves, wire=wire, rows=rows)
            for n, p in model.named_parameters():
                p.grad = root.get(n)
            for n, b in model.named_buffers():
                change = root[f"buffer {n}"]
                change = change if b.is_floating_point() else change.round()
                b.copy_(before[n] + change)
            losses.append(float(root["loss"]))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step == steps:
                break
        epoch += 1
    return digest(model, optimizer), losses


def _leaves(
    model: nn.Module, loss_fn: nn.Module, shards: Any, step: int
) -> list[dict[str, Tensor]]:
    """By micro-batch: weighted gradients, buffers' changes and loss, by name."""
    before = {n: b.clone() for n, b in model.named_buffers()}
    leaves: list[dict[str, Tensor]] = []
    for part in range(shards.parts):
        weight = shards.weight(part)
        for n, b in model.named_buffers():
            b.copy_(before[n])
        if weight == 0.0:  # the last step has fewer samples than parts
            leaves.append({})
            continue
        with pass_rng(SEED, step, part):
            x, y = shards.fetch(part)
            loss = loss_fn(model(x), y)
            loss.backward()
        leaf = {
            n: p.grad * weight
            for n, p in model.named_parameters()
            if p.grad is not None
        }
        leaf |= {
            f"buffer {n}": (b - before[n]).float() * weight
            for n, b in model.named_buffers()
        }
        leaf["loss"] = loss.detach() * weight
        leaves.append(leaf)
        for p in model.parameters():
            p.grad = None
    zeros = {n: torch.zeros_like(t) for n, t in leaves[0].items()}
    return [leaf or zeros for leaf in leaves]


def _root(
    tree: SumTree,
    leaves: list[dict[str, Tensor]],
    *,
    wire: torch.dtype,
    rows: int,
) -> dict[str, Tensor]:
    """The leaves added up in the order of the tree, gradients rounded; see `plain`."""
    other = ("buffer ", "loss")

    def rounded(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            n: t if n.startswith(other) else t.to(wire).float()
            for n, t in values.items()
        }

    def total(node: int) -> dict[str, Tensor]:
        if tree.left[node] < 0:
            return rounded(leaves[node])
        a, b = total(int(tree.left[node])), total(int(tree.right[node]))
        both = {n: a[n] + b[n] for n in a}
        parts = tree.stop[node] - tree.start[node]
        return rounded(both) if parts <= rows else both

    return rounded(total(int(tree.root)))
