"""`design`: candidates are made and measured, and one is chosen.

Nothing is assumed of what is faster or closer: costs are seconds on this device, and
agreement is counted on inputs that nothing was trained or calibrated on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.guard import undisturbed
from codedgrad.inference.learned.subject import subject_of
from codedgrad.inference.search.candidates import (
    Bench,
    Search,
    exact_codes,
    low_precision,
    mixing_codes,
    stand_ins,
)
from codedgrad.inference.search.table import Candidate, Design, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_FEWEST = 100  # samples
_TRAIN, _HOLD = 0.6, 0.2  # of the samples; the rest is what candidates are measured on


def design(
    model: nn.Module,
    samples: Tensor | Sequence[Tensor],
    budget: float = 1 / 4,
    error: float = 0.005,
    search: Search | None = None,
) -> Design:
    """Search the redundancy for a model's queries that is best within a budget.

        found = design(model, samples, budget=1 / 8)
        print(found)
        stand_in = found.stand_in       # None where something else was chosen

    Args:
        model: the model, with one tensor of logits or numbers as its answer.
        samples: inputs without labels, independent of one another, one a row: 60 % to
            train on, 20 % for doubts, and 20 % to measure on. Or three tensors for
            these, which must be independent of one another.
        budget: extra seconds for a query that are allowed, over the model's.
        error: the share of trusted answers that may differ from the model's.
        search: what is tried, and how it is trained.

    Returns:
        All that was tried, the choice, and why; the choice may be None, exact only.

    Raises:
        ConfigError: samples, budget or answers cannot be used.
    """
    search = search or Search()
    if not 0 < budget < float("inf"):
        raise ConfigError(
            f"budget is the extra time of a query over the model's, above 0, got "
            f"{budget}"
        )
    fitted, held_out, measured = _divided(samples, search)
    with undisturbed([model]):
        torch.manual_seed(search.training.seed)
        subject = subject_of(model, measured, search.stages, search.outputs)
        bench = Bench(subject, fitted, held_out, budget, error, search=search)
        found, left_out = _tried(bench)
    choice, why = choose(found, budget)
    return Design(tuple(found), choice, why, budget, tuple(left_out))


def _divided(
    samples: Tensor | Sequence[Tensor], search: Search
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns inputs to train on, for doubts, and to measure on."""
    parts = [samples] if isinstance(samples, Tensor) else list(samples)
    if len(parts) not in (1, 3) or not all(isinstance(p, Tensor) for p in parts):
        raise ConfigError(
            f"samples must be one tensor or three, got {len(parts)} parts"
        )
    for part in parts:
        if part.dim() < 2 or len(part) < _FEWEST:
            raise ConfigError(
                f"samples must be tensors of {_FEWEST} inputs or more, one a row, got "
                f"{tuple(part.shape)}"
            )
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    generator = torch.Generator().manual_seed(search.training.seed)
    order = torch.randperm(len(parts[0]), generator=generator).to(parts[0].device)
    first, second = round(_TRAIN * len(order)), round((_TRAIN + _HOLD) * len(order))
    rows = order[:first], order[first:second], order[second:]
    return parts[0][rows[0]], parts[0][rows[1]], parts[0][rows[2]]


def _tried(bench: Bench) -> tuple[list[Candidate], list[str]]:
    """Returns all candidates that could be made, and why others could not."""
    kinds: dict[str, Callable[[Bench], Iterator[Candidate]]] = {
        "exact codes": exact_codes,
        "low precision": low_precision,
        "stand-ins": stand_ins,
    }
    if bench.search.mixing:
        kinds["codes that mix"] = mixing_codes
    found: list[Candidate] = []
    left_out = []
    for name, make in kinds.items():
        try:
            found += make(bench)
        except (ConfigError, RuntimeError, NotImplementedError) as error:
            left_out.append(f"{name} ({error})")
    return found, left_out
