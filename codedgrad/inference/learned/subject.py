"""The model that a stand-in imitates: its stages, and what it answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codedgrad.inference.learned.outputs import Outputs, check
from codedgrad.inference.learned.stages import check_stages, stages_of
from codedgrad.inference.learned.trunk import head
from codedgrad.row.digest import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = 256  # samples that the model answers at once


@dataclass(frozen=True)
class Subject:
    """A model and what it answers.

    Attributes:
        model: the model, in eval mode.
        stages: its stages, or none.
        inputs: samples.
        answers: the model's answers to them, as rows.
        outputs: what its answers are.
        shapes: of one query's features, after each stage but the last.
        pooled: what the exits' heads see of the samples; empty where no head is known.
        device: where it computes.
    """

    model: nn.Module
    stages: list[nn.Module]
    inputs: Tensor
    answers: Tensor
    outputs: Outputs
    shapes: list[tuple[int, ...]]
    pooled: list[Tensor]
    device: torch.device


def subject_of(
    model: nn.Module,
    inputs: Tensor,
    stages: Sequence[nn.Module] | None,
    kind: str | None,
) -> Subject:
    """Returns what a model answers; it is in eval mode, and no gradient is recorded.

    Args:
        model: the model.
        inputs: samples.
        stages: as for `distil`.
        kind: of the answers, as for `Outputs.of`.
    """
    found = stages_of(model, stages)
    some = inputs[:CHUNK]
    answers = model(some)
    check(answers)
    if found:
        check_stages(found, some, answers)
    shapes = []
    for stage in found[:-1]:
        some = stage(some)
        shapes.append(tuple(some.shape[1:]))
    answers, pooled = _answers(model, inputs, found, shapes)
    outputs = Outputs.of(answers, kind)
    rows = outputs.rows(answers)
    return Subject(
        model=model,
        stages=found,
        inputs=inputs,
        answers=rows,
        outputs=outputs,
        shapes=shapes,
        pooled=pooled,
        device=answers.device,
    )


def _answers(
    model: nn.Module,
    inputs: Tensor,
    stages: list[nn.Module],
    shapes: list[tuple[int, ...]],
) -> tuple[Tensor, list[Tensor]]:
    """Returns the model's answers, and what heads would see after each stage."""
    if not stages:
        return torch.cat([model(chunk) for chunk in inputs.split(CHUNK)]), []
    pools = [head(s, 1)[:-1] if len(s) in (1, 2, 3) else None for s in shapes]
    parts: list[list[Tensor]] = [[] for _ in shapes]
    answers = []
    for chunk in inputs.split(CHUNK):
        features = chunk
        for stage, pool, part in zip(stages[:-1], pools, parts, strict=True):
            features = stage(features)
            if pool is not None:
                part.append(pool(features))
        answers.append(stages[-1](features))
    pooled = [torch.cat(part) if part else inputs.new_zeros(0) for part in parts]
    return torch.cat(answers), pooled


def weights_digest(model: nn.Module) -> str:
    """Returns a digest of a model's parameters and saved buffers."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tensor_digest(tensor)}".encode())
    return found.hexdigest()
