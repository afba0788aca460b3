"""Whether a pass is cut into pieces, by the own worker and by helpers.

| `same_bits` | `pieces` | the own pass | help | bits depend on who is late |
|---|---|---|---|---|
| False | "auto", True | whole | single micro-batches | yes |
| False | False | whole | whole shards | no |
| True | "auto", True | micro-batches | single micro-batches | no |
| True | False | whole | whole shards | no |

"auto" becomes False for models with batch norm under `same_bits=False`: a piece is
normalised by its own statistics, so it is another function than its part of the whole.
So it does for models with other state that passes change (a running mean, a count of
samples, an observer), once a pass has changed it: what a piece leaves there is not a
part of what the whole shard leaves. And so it does where the loss of a shard is not the
mean of those of its pieces, which a rehearsal finds (`codedgrad.step.rehearsal`).
Under `same_bits=True` the own pass has the same pieces, so nothing depends on the help;
where they are another function, that is told (see `codedgrad.step.micro`).
"""

from __future__ import annotations

import logging
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from codedgrad.codes.whole import helps_in_pieces, in_shards
from codedgrad.errors import CodedGradError, ConfigError, NonFiniteError
from codedgrad.step.loss import UnlikeBatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import nn

    from codedgrad.codes import Code
    from codedgrad.job.settings import RunSettings

log = logging.getLogger("codedgrad")
_MEASURED = 5  # pieces, before their cost is said
# Stands among the names of tensors that make a piece another function.
LOSS = "(loss function)"


def own_is_whole(run: RunSettings) -> bool:
    """Returns whether an item is computed in one pass, however many parts it has."""
    return not run.same_bits or run.pieces is False


def code_of(code: Code, modules: Sequence[nn.Module], run: RunSettings) -> Code:
    """Returns the code, with help in whole shards where pieces would be wrong.

    Args:
        code: who computes what.
        modules: the model, and others that the loss function calls.
        run: of it `same_bits` and `pieces`.

    Raises:
        ConfigError: `run.same_bits` or `run.pieces` is nothing that there is.
    """
    if not isinstance(run.same_bits, bool):
        raise ConfigError(f"same_bits must be True or False, got {run.same_bits!r}")
    if run.pieces != "auto" and not isinstance(run.pieces, bool):
        raise ConfigError(f'pieces must be "auto", True or False, got {run.pieces!r}')
    if run.pieces is False:
        return in_shards(code)
    if run.pieces == "auto" and not run.same_bits and helps_in_pieces(code):
        named = chain.from_iterable(m.named_modules() for m in modules)
        norm = next((n for n, m in named if normalises(m)), None)
        if norm is not None:
            log.info(
                "%r is a batch norm, which makes a micro-batch another function than "
                "its part of the shard: helpers take whole shards. pieces=True has "
                "them take micro-batches (right where the batch norm is frozen)",
                norm,
            )
            return in_shards(code)
    return code


def code_of_state(code: Code, names: Collection[str], run: RunSettings) -> Code:
    """Returns the code, with help in whole shards where passes change these tensors.

    `names` may hold `LOSS`, where the loss function wants whole shards.
    """
    auto = run.pieces == "auto" and not run.same_bits
    if not (names and auto and helps_in_pieces(code)):
        return code
    if set(names) == {LOSS}:
        log.info("a shard is not the mean of its pieces, so helpers take whole shards")
        return in_shards(code)
    log.info(
        "passes change %s, so a micro-batch may be another function than its part of "
        "the shard: helpers take whole shards. pieces=True has them take micro-batches",
        ", ".join(map(repr, sorted({*names} - {LOSS})[:4])),
    )
    return in_shards(code)


def normalises(module: nn.Module) -> bool:
    """Returns whether the module is a batch norm.

    One in eval mode counts, too, because it may be put into training later.
    """
    return isinstance(module, _BatchNorm)


class Trials:
    """Pieces of a late shard may fail where the shard does not; see `failed`.

    A loss function can need more samples than a piece has: a standard deviation of one
    sample is NaN, and some layers refuse a batch of one. Where own passes are whole,
    their worker computes what no piece gives.
    """

    def __init__(self, code: Code, *, whole: bool) -> None:
        """Begin; `whole`: own passes are whole, so that a piece may fail."""
        self._tree, self._most = code.tree, code.micro if whole else 0
        self._told = False

    def failed(self, node: int, error: Exception) -> bool:
        """Returns whether the item is given up, and its own worker is waited for.

        Args:
            node: of the helper's item.
            error: with which its pass failed. What this package itself refuses, but for
                numbers that are not finite and batches unlike others, is no matter of
                how many samples there are.
        """
        leaves = int(self._tree.stop[node] - self._tree.start[node])
        ours = isinstance(error, CodedGradError) and not isinstance(
            error, NonFiniteError | UnlikeBatchError
        )
        if leaves >= self._most or ours:
            return False
        if not self._told:
            self._told = True
            log.warning(
                "a piece of a late shard failed where the whole shard may not (%s: "
                "%s), so its own worker is waited for. If the loss function is another "
                "function of few samples, let helpers take whole shards: "
                "CodedGradient(..., pieces=False)",
                type(error).__name__,
                error,
            )
        return True


class PieceCost:
    """Measures, once, what it costs to cut a pass of this model into pieces."""

    def __init__(self) -> None:
        """Begin to measure."""
        self._ratios: list[float] = []

    def add(self, seconds: float, share: float, pass_s: float) -> None:
        """Note a piece that was computed; say the cost when enough are known.

        Args:
            seconds: what the piece took.
            share: its share of an own pass.
            pass_s: what an own pass usually takes.
        """
        if len(self._ratios) == _MEASURED or not share < 1.0 or pass_s <= 0.0:
            return
        self._ratios.append(seconds / (share * pass_s))
        if len(self._ratios) == _MEASURED:
            cost = median(self._ratios)
            log.info(
                "an own pass takes %.1f ms whole; %d pieces of it take %.2f x as long "
                "here, which helpers pay, and with same_bits=True every step",
                1e3 * pass_s,
                round(1.0 / share),
                cost,
            )
