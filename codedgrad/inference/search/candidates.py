"""Candidates of a search: each is made for a budget, and measured on this device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference import codes
from codedgrad.inference.learned.bounds import upper
from codedgrad.inference.learned.distil import distil
from codedgrad.inference.learned.gate import GateSettings
from codedgrad.inference.learned.sizing import widest
from codedgrad.inference.learned.subject import Subject
from codedgrad.inference.learned.timing import seconds_of
from codedgrad.inference.learned.training import Distillation
from codedgrad.inference.learned.trunk import folded, trunk
from codedgrad.inference.search.table import Candidate

_SMALLER = (1.0, 0.5, 0.25)  # stand-ins' costs over the budget


@dataclass(frozen=True)
class Search:
    """What is searched, and for whom.

    Attributes:
        k: queries of a group, for codes.
        mixing: also try codes that mix queries, which are trained like stand-ins.
        training: of stand-ins and of codes; `timed` queries at once are measured.
        stages: as for `distil`.
        outputs: as for `distil`.
    """

    k: int = 4
    mixing: bool = True
    training: Distillation = field(default_factory=Distillation)
    stages: tuple[nn.Module, ...] | None = None
    outputs: str | None = None


@dataclass(frozen=True)
class Bench:
    """What all candidates are measured by.

    Attributes:
        subject: the model's answers to inputs that nothing was trained on.
        fitted: inputs to train on.
        held_out: inputs for doubts and thresholds.
        budget: extra seconds for a query, over the model's.
        error: that trusted answers may have.
        search: the settings.
    """

    subject: Subject
    fitted: Tensor
    held_out: Tensor
    budget: float
    error: float
    search: Search

    @property
    def some(self) -> Tensor:
        """Queries of one call."""
        return self.subject.inputs[: self.search.training.timed]

    def unit(self) -> Tensor:
        """Return what the model answers to one call's queries."""
        found: Tensor = self.subject.model(self.some)
        return found

    def shares(self, call: Callable[[], object]) -> float:
        """Return the seconds of a call over the model's for one call's queries."""
        unit_s, own_s = seconds_of([self.unit, call], self.subject.device)
        return own_s / unit_s

    def groups(self, inputs: Tensor) -> Tensor:
        """Return inputs in groups of k, [groups, k, ...]."""
        k = self.search.k
        whole = len(inputs) // k * k
        return inputs[:whole].reshape(-1, k, *inputs.shape[1:])


def stand_ins(bench: Bench) -> Iterator[Candidate]:
    """Make stand-ins at the budget, at half of it and at a quarter."""
    subject, search = bench.subject, bench.search
    for part in _SMALLER:
        made = distil(
            subject.model,
            bench.fitted,
            min(part * bench.budget, 0.95),
            held_out=bench.held_out,
            stages=search.stages,
            outputs=search.outputs,
            gate=GateSettings(error=bench.error),
            training=search.training,
        )
        rows, doubts = [], []
        for chunk in subject.inputs.split(256):
            values, doubt = made(chunk)
            rows.append(subject.outputs.rows(values))
            doubts.append(doubt)
        losses = subject.outputs.losses(torch.cat(rows), subject.answers)
        trusted = (torch.cat(doubts) <= made.threshold).double().mean()
        yield Candidate(
            f"stand-in, width {made.width}, {made.shared} shared",
            made.cost,
            float(1 - losses.mean()),
            float(trusted),
            exact=False,
            others=0,
            made=made,
        )


def low_precision(bench: Bench) -> Iterator[Candidate]:
    """Make the model in bfloat16."""
    model = copy.deepcopy(bench.subject.model).to(torch.bfloat16)

    def answer(inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            inputs = inputs.to(torch.bfloat16)
        found: Tensor = model(inputs)
        return found.to(bench.subject.answers.dtype)

    rows = [answer(chunk) for chunk in bench.subject.inputs.split(256)]
    outputs = bench.subject.outputs
    losses = outputs.losses(outputs.rows(torch.cat(rows)), bench.subject.answers)
    yield Candidate(
        "the model in bfloat16",
        bench.shares(lambda: answer(bench.some)),
        float(1 - losses.mean()),
        _allowed(losses, bench),
        exact=False,
        others=0,
        made=model,
    )


def exact_codes(bench: Bench) -> Iterator[Candidate]:
    """Make replicas, and the split code if the model ends in a linear layer."""
    k, model = bench.search.k, bench.subject.model
    yield Candidate("replica", 1.0, 1.0, 1.0, exact=True, others=0)
    yield _measured(codes.BatchReplica(model, k), bench, others=0)
    stages = bench.subject.stages
    try:
        split = codes.split_of(nn.Sequential(*stages) if stages else model)
    except ConfigError:
        return
    yield _measured(codes.SplitLinear(*split, k), bench, others=k - 1)


def mixing_codes(bench: Bench) -> Iterator[Candidate]:
    """Train and measure the field's codes, each as wide as the budget allows."""
    subject, k = bench.subject, bench.search.k
    if not subject.inputs.is_floating_point() or subject.outputs.flat:
        return
    model, width = subject.model, subject.outputs.width
    shape = tuple(subject.inputs.shape[1:])

    def parity(net: nn.Module) -> codes.ParitySum:
        return codes.ParitySum(model, k, net)

    def collage(net: nn.Module) -> codes.Collage:
        return codes.Collage(model, k, net)

    makers: list[tuple[Callable[[nn.Module], codes.Learned], tuple[int, ...], int, int]]
    makers = [(parity, shape, width, k - 1)]
    try:
        collage(nn.Identity()).redundant(bench.groups(subject.inputs[:k]))
        if subject.outputs.kind == "logits":
            makers.append((collage, shape, k * width, 0))
    except ConfigError:
        pass  # k queries of this shape make no collage
    for depth in range(min(3, len(subject.stages))):
        features = subject.shapes[depth - 1] if depth else shape
        if subject.outputs.kind != "logits" or len(features) > 3:
            continue

        def mixed(
            net: nn.Module, depth: int = depth, channels: int = features[0]
        ) -> codes.Mixed:
            sizes = (channels, width)
            return codes.Mixed(subject.stages, depth, k, net, sizes)

        makers.append((mixed, features, width, k - 1))
    slow = []
    for make, features, outputs, others in makers:
        try:
            yield _trained(make, (features, outputs), bench, others)
        except ConfigError as error:
            slow.append(str(error))
    yield _measured(codes.SystematicBerrut(model, k, k + 1), bench, others=k - 1)
    yield _measured(codes.Berrut(model, k, k + 1), bench, others=k)
    yield _measured(codes.Splines(model, k, k + 1), bench, others=k)
    if slow:
        raise ConfigError("; ".join(slow))


def _trained(
    make: Callable[[nn.Module], codes.Learned],
    shape: tuple[tuple[int, ...], int],
    bench: Bench,
    others: int,
) -> Candidate:
    """Make the widest code that fits, train it, and measure it."""
    features, outputs = shape
    groups = bench.some[:, None].expand(-1, bench.search.k, *bench.some.shape[1:])

    def build(width: int) -> tuple[nn.Sequential, Callable[[], object]]:
        net = trunk(features, width, outputs).to(bench.subject.device)
        code = make(folded(net.eval()))
        return net, lambda: code.back_up(code.redundant(groups))

    given, limit = bench.search.training.width, bench.budget * bench.search.k
    best: nn.Sequential | None
    if given is not None:
        (best, _), least = build(given), 0.0
    else:
        best, least = widest(build, bench.unit, 0.9 * limit, bench.subject.device)
    if best is None:
        name = make(nn.Identity()).name
        raise ConfigError(
            f"{name}: even the narrowest takes {100 * least / bench.search.k:.1f} % "
            f"extra time"
        )
    code = make(best.train())
    codes.fit(code, bench.fitted, bench.search.training)
    best.eval()
    return _measured(code, bench, others)


def _measured(code: codes.QueryCode, bench: Bench, others: int) -> Candidate:
    """Return a code's extra seconds, and its agreement, each query missing in turn."""
    k, outputs = code.k, bench.subject.outputs
    groups = bench.groups(bench.subject.inputs)
    rows = bench.groups(bench.subject.answers)
    lost = []
    for chunk, wanted in zip(groups.split(64), rows.split(64), strict=True):
        sent = code.encode(chunk)
        answers = {w: code.compute(w, x) for w, x in enumerate(sent)}
        for q in range(k):
            here = {w: a for w, a in answers.items() if w != q}
            found = code.decode(here)[:, q]
            lost.append(outputs.losses(outputs.rows(found), wanted[:, q]))
    losses = torch.cat(lost)
    states = code.availability(set(range(code.n)) - {0})
    exact = states[0] == "exact"
    return Candidate(
        code.name,
        _extra(code, bench) / k,
        float(1 - losses.mean()),
        1.0 if exact else _allowed(losses, bench),
        exact=exact,
        others=others,
        made=code,
    )


def _extra(code: codes.QueryCode, bench: Bench) -> float:
    """Return the time of encoding, redundant workers and decoding, in model calls."""
    groups = bench.some[:, None].expand(-1, code.k, *bench.some.shape[1:]).contiguous()
    sent = code.encode(groups)
    own = {w: code.compute(w, x) for w, x in enumerate(sent) if 0 < w < code.k}

    def work() -> None:
        again = code.encode(groups)
        more = {w: code.compute(w, again[w]) for w in range(code.k, code.n)}
        code.decode({**own, **more})

    return bench.shares(work)


def _allowed(losses: Tensor, bench: Bench) -> float:
    """Return 1 if all answers may be trusted: a code has no doubt, so all or none."""
    confidence = GateSettings().confidence
    return float(upper(losses.numpy(), confidence) <= bench.error)
