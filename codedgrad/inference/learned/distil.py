"""`distil`: how a stand-in is made, in order.

the model's answers -> width by measured seconds -> trained -> exits -> doubt -> gate
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.guard import undisturbed
from codedgrad.inference.learned.doubt import Doubt
from codedgrad.inference.learned.exits import Exit
from codedgrad.inference.learned.gate import Gate, GateSettings
from codedgrad.inference.learned.sizing import widest
from codedgrad.inference.learned.stages import frozen
from codedgrad.inference.learned.stand_in import StandIn
from codedgrad.inference.learned.subject import subject_of, weights_digest
from codedgrad.inference.learned.timing import seconds_of
from codedgrad.inference.learned.training import (
    Distillation,
    train_heads,
    train_trunk,
)
from codedgrad.inference.learned.trunk import check_features, folded, trunk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from codedgrad.inference.learned.subject import Subject

_GRID = 60  # thresholds that a gate chooses from
_MARGIN = 0.9  # of the cost, for a machine that is less busy later
_NARROWER = 0.5  # a trunk may be, for the model's first stage before it
_KEEP = 0.2  # of the samples are held out where none are given
_FEWEST = 20  # samples


def distil(
    model: nn.Module,
    samples: Tensor,
    cost: float = 1 / 8,
    *,
    held_out: Tensor | None = None,
    stages: Sequence[nn.Module] | None = None,
    outputs: str | None = None,
    gate: GateSettings | None = None,
    training: Distillation | None = None,
) -> StandIn:
    """Make a stand-in of a model, from inputs without labels.

        stand_in = distil(model, samples, cost=1 / 8, held_out=others)
        values, doubts = stand_in(queries)

    Args:
        model: the model; its mode, buffers and random numbers stay as they are.
        samples: inputs as queries are, one a row. The model answers each once.
        cost: seconds of the stand-in over the model's, at most, measured here.
        held_out: other inputs, for doubt and threshold, half for each. They must be
            independent of one another and of `samples`: several distorted copies of
            one image are not. None: a fifth of `samples`.
        stages: modules whose composition is the model; None: the parts of a
            `Sequential`. The first one is shared, the others have exits.
        outputs: "logits" or "numbers"; None: logits where there are two or more.
        gate: what trusted answers may lose.
        training: steps, learning rate and seed.

    Raises:
        ConfigError: no width is fast enough, or the model's answers are neither logits
            nor numbers.
        NonFiniteError: the model answers with NaN or infinity.
    """
    training = training or Distillation()
    fitted, others = _divided(samples, held_out, cost, training)
    with undisturbed([model]):
        torch.manual_seed(training.seed)
        subject = subject_of(model, fitted, stages, outputs)
        made = sized(subject, cost, training)
        with torch.enable_grad():
            train_trunk(made.trunk, made.stages, subject, training)
            heads = train_heads(subject, training)
        made.trunk = folded(made.trunk)
        held = subject_of(model, others, stages, subject.outputs.kind)
        _calibrate(made, heads, held, gate or GateSettings())
        made.cost = cost_of(made, model, fitted[: training.timed])
        made.digest = weights_digest(model)
    made.notes = _notes(subject, made)
    for note in made.notes:
        warnings.warn(note, stacklevel=2)
    return made


def _divided(
    samples: Tensor, held_out: Tensor | None, cost: float, training: Distillation
) -> tuple[Tensor, Tensor]:
    """Returns samples to distil on and samples held out."""
    for name, given in (("samples", samples), ("held_out", held_out)):
        if name == "held_out" and given is None:
            continue
        if not isinstance(given, Tensor) or given.dim() < 2 or len(given) < _FEWEST:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given)
            raise ConfigError(
                f"{name} must be a tensor of {_FEWEST} inputs or more, one a row, got "
                f"{got}"
            )
    if not 0 < cost < 1:
        raise ConfigError(
            f"cost is the stand-in's time over the model's, above 0 and below 1, "
            f"got {cost}"
        )
    generator = torch.Generator().manual_seed(training.seed)
    if held_out is None:
        order = torch.randperm(len(samples), generator=generator).to(samples.device)
        keep = round(_KEEP * len(samples))
        return samples[order[keep:]], samples[order[:keep]]
    if held_out.shape[1:] != samples.shape[1:]:
        raise ConfigError(
            f"held_out must be inputs as samples are, {tuple(samples.shape[1:])}, got "
            f"{tuple(held_out.shape[1:])}"
        )
    order = torch.randperm(len(held_out), generator=generator).to(held_out.device)
    return samples, held_out[order]


def sized(subject: Subject, cost: float, training: Distillation) -> StandIn:
    """Returns a stand-in, untrained, of the largest width that the cost allows."""
    some, least = subject.inputs[: training.timed], math.inf
    if training.width is not None:
        share = bool(subject.shapes) and training.share is not False
        return _untrained(subject, int(share), training.width)
    best: StandIn | None = None
    for shared in [0, 1] if subject.shapes else [0]:
        if training.share not in (None, bool(shared)):
            continue

        def build(
            width: int, shared: int = shared
        ) -> tuple[StandIn, Callable[[], object]]:
            made = _untrained(subject, shared, width)
            quick = copy.copy(made)
            quick.trunk = folded(made.trunk)
            return made, lambda: quick(some)

        found, share_s = widest(
            build, lambda: subject.model(some), _MARGIN * cost, subject.device
        )
        least = min(least, share_s)
        if found and (best is None or found.width >= _NARROWER * best.width):
            best = found
    if best is not None:
        return best
    raise ConfigError(
        f"no stand-in fits {cost:.3g} of the model's time: the narrowest takes "
        f"{least:.3g}, {training.timed} queries at once; allow a larger cost, or "
        f"more queries at once (training=Distillation(timed=...))"
    )


def _untrained(subject: Subject, shared: int, width: int) -> StandIn:
    shape = tuple(subject.inputs.shape[1:])
    features = subject.shapes[shared - 1] if shared else shape
    check_features(features)
    outputs, device = subject.outputs, subject.device
    net = trunk(features, width, outputs.width + 1).to(device).eval()
    blank = subject.answers[:8]
    signs = outputs.signs(torch.cat([blank, blank[:, :1]], 1))
    return StandIn(
        {
            "outputs": outputs,
            "shape": shape,
            "width": width,
            "exits": {},
            "cost": math.nan,
            "notes": (),
            "stages": frozen(subject.stages[:shared]),
            "trunk": net,
            "features": features,
            # It takes as long as the one that is fitted later.
            "doubt": Doubt.fit(signs, torch.zeros(len(signs))).to(device),
            "gate": Gate([], GateSettings()),
            "digest": "",
        }
    )


def _calibrate(
    made: StandIn,
    heads: dict[int, nn.Sequential],
    held: Subject,
    settings: GateSettings,
) -> None:
    """Fit doubts on one half of what is held out, and thresholds on the other."""
    outputs = made.outputs
    for depth, net in heads.items():
        rows = net[-1](held.pooled[depth - 1])
        losses = outputs.losses(rows[:, :-1], held.answers)
        found = _fitted(outputs.signs(rows), losses, settings)
        made.exits[depth] = Exit(net, held.shapes[depth - 1], *found)
    parts = [made.rows_and_signs(chunk) for chunk in held.inputs.split(1024)]
    rows = torch.cat([part[0] for part in parts])
    signs = torch.cat([part[1] for part in parts])
    losses = outputs.losses(rows, held.answers)
    made.doubt, made.gate = _fitted(signs, losses, settings)


def _fitted(
    signs: Tensor, losses: Tensor, settings: GateSettings
) -> tuple[Doubt, Gate]:
    half = len(signs) // 2
    doubt = Doubt.fit(signs[:half], losses[:half]).to(signs.device)
    known = doubt(signs[:half]).double()
    steps = torch.linspace(0, 1, _GRID + 1, dtype=known.dtype, device=known.device)[1:]
    gate = Gate(known.quantile(steps).tolist(), settings)
    gate.calibrate(doubt(signs[half:]).double().cpu().numpy(), losses[half:].numpy())
    return doubt, gate


def cost_of(made: StandIn, model: nn.Module, queries: Tensor) -> float:
    """Returns a stand-in's measured seconds for these queries, over the model's."""
    model_s, own_s = seconds_of(
        [lambda: model(queries), lambda: made(queries)], queries.device
    )
    return own_s / model_s


def _notes(subject: Subject, made: StandIn) -> tuple[str, ...]:
    notes = []
    if not subject.shapes:
        notes.append(
            "the model shows no stages, so the stand-in begins with the inputs and has "
            "no exits; give stages=[...] whose composition is the model"
        )
    elif not made.shared:
        notes.append(
            "the model's first stage costs more than it is worth, so it is not shared"
        )
    return tuple(notes)
