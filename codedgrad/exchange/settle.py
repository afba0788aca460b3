"""Estimated steps: what the engine must know to settle, checkpoints, late passes.

An owner may settle for an estimate of its slice before the arrivals cover the batch.
The engine decides when, by the settings from here, and learns while it runs; what it
has learned is part of a checkpoint.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError
from codedgrad.exchange import pretrained
from codedgrad.job.settings import Approximate, finite_or

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.row.layout import Layout

_LABELS = -6  # place of the number of labels in a decoder's state


def units_of(code: Code) -> list[int]:
    """Returns the tree nodes that workers send when nobody is late, each once.

    Raises:
        ConfigError: rows are not plain sums of different parts of the batch.
    """
    if code.linear:
        raise ConfigError(
            f"{code.describe()} sends combinations of shards, of which nothing can be "
            f'estimated: use policy="exact", or a code whose rows are plain sums, like '
            f"codes.spread or codes.uncoded"
        )
    nodes = {
        node
        for work, required in zip(code.work, code.required, strict=True)
        for node in work[:required]
    }
    units = sorted(nodes, key=lambda node: int(code.tree.start[node]))
    covered = sum(int(code.tree.stop[u] - code.tree.start[u]) for u in units)
    if covered != code.parts:
        raise ConfigError(
            f"{code.describe()} requires overlapping shards of different workers; "
            f'policy="approximate" needs codes.spread, scheduled, uncoded or fractional'
        )
    return units


def engine_settings(policy: Approximate, code: Code, layout: Layout) -> Any:
    """Returns what the engine needs to settle, an `_engine.Approximate`.

    Raises:
        ConfigError: rows are not plain sums of different parts of the batch.
    """
    from codedgrad.job import _engine

    tree = code.tree
    units = units_of(code)
    return _engine.Approximate(
        max_error=finite_or(policy.max_error),
        max_noise=finite_or(policy.max_noise),
        patience=policy.patience,
        compensate=policy.late == "compensate",
        left=tree.left,
        right=tree.right,
        parent=tree.parent,
        start=tree.start,
        stop=tree.stop,
        units=units,
        weights=[(int(tree.stop[u]) - int(tree.start[u])) / code.parts for u in units],
        tensors=layout.tensor_ends(),
        network=pretrained.native(),
    )


def checkpoint(exchange: Exchange, code: Code, layout: Layout) -> dict[str, Any]:
    """Returns what the decoders have learned, for a `state_dict`.

    Of this worker's decoders it takes the one that has seen most labels. The gradients
    that owners remember are not part of it.
    """
    states = [s for s in exchange.decoder_states() if s]
    return {
        "code": code.fingerprint(),
        "model": _model(layout),
        "state": max(states, key=lambda s: s[_LABELS]) if states else [],
    }


def restore(
    exchange: Exchange, code: Code, layout: Layout, saved: dict[str, Any]
) -> None:
    """Makes the decoders go on from what `checkpoint` returned.

    Raises:
        ConfigError: it was saved with another code or model, or is damaged.
    """
    for name, mine in (("code", code.fingerprint()), ("model", _model(layout))):
        if saved.get(name) != mine:
            raise ConfigError(
                f"the decoder's checkpoint belongs to another {name} "
                f"({str(saved.get(name))[:12]}, here {mine[:12]}); what it has learned "
                f'does not hold here: delete state["decoder"] to begin anew'
            )
    if saved["state"]:
        exchange.restore_decoders(saved["state"])


def _model(layout: Layout) -> str:
    return hashlib.sha256(repr(layout.describe()).encode()).hexdigest()
