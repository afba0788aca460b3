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
from codedgrad.settings import Approximate, finite_or

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.exchange.engine import Exchange
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


def engine_settings(policy: Approximate, code: Code, payload: Layout) -> Any:
    """What `_engine.Exchange` needs to settle."""
    from codedgrad.job import _engine

    tree = code.tree
    units = units_of(code)
    return _engine.Approximate(
        max_error=finite_or(policy.max_error),
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


class LatePass:
    """What a worker does that is late in an approximate step."""

    def __init__(self, window: int, *, active: bool) -> None:
        """`active` False: every late pass is abandoned, as in exact steps."""
        self._limit = max(1, 3 * window // 4)  # others wait at a whole window
        self._active = active
        self._go_on = False
        self._ready: list[tuple[int, Tensor]] = []

    def needless(self, exchange: Exchange, step: int) -> bool:
        """May the pass be abandoned?

        One that was late in the step before, too, is slow rather than held up once:
        it finishes its pass if that takes at most three quarters of a window.
        """
        if not exchange.done(step):
            return False
        return not (self._active and self._go_on) or exchange.done(step + self._limit)

    def over(self, *, abandoned: bool) -> None:
        """After the pass. One that was finished late is to catch up first."""
        self._go_on = abandoned
        self._ready = []

    def sender(
        self, exchange: Exchange, code: Code, step: int
    ) -> Callable[[int, Tensor], None] | None:
        """To be called with every node of the own row that is done before the row is.

        While others wait for this worker they get what it has.
        """
        if not self._active:
            return None
        tree = code.tree

        def done(node: int, value: Tensor) -> None:
            # What the node is made of need not be sent by itself any more.
            self._ready = [
                (n, v)
                for n, v in self._ready
                if not tree.start[node] <= tree.start[n] < tree.stop[node]
            ]
            self._ready.append((node, value))
            if exchange.done(step) or not exchange.past_half(step):
                return
            for ready, row in self._ready:
                copy = exchange.row_buffer()
                copy.tensor.copy_(row)
                exchange.post(step, ready, copy)
            self._ready = []

        return done


def checkpoint(exchange: Exchange, code: Code, payload: Layout) -> dict[str, Any]:
    """What the decoder has learned, for `state_dict`; not the remembered gradients."""
    states = [s for s in exchange.decoder_states() if s]
    return {
        "code": code.fingerprint(),
        "model": _model(payload),
        "state": max(states, key=lambda s: s[_LABELS]) if states else [],
    }


_LABELS = -6  # place of the number of labels in a state


def restore(
    exchange: Exchange, code: Code, payload: Layout, saved: dict[str, Any]
) -> None:
    """Go on from `checkpoint`.

    Raises:
        ConfigError: saved with another code or model, or damaged.
    """
    for name, mine in (("code", code.fingerprint()), ("model", _model(payload))):
        if saved.get(name) != mine:
            raise ConfigError(
                f"the decoder's checkpoint belongs to another {name} "
                f"({str(saved.get(name))[:12]}, here {mine[:12]}); what it has learned "
                f'does not hold here: delete state["decoder"] to begin anew'
            )
    if saved["state"]:
        exchange.restore_decoders(saved["state"])


def _model(payload: Layout) -> str:
    return hashlib.sha256(repr(payload.describe()).encode()).hexdigest()
