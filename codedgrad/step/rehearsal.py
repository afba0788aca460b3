"""A rehearsal of the first own pass: is a shard the sum of its pieces?

A helper cuts a late shard into pieces, which is right only where the loss of a shard is
the mean of the losses of its pieces, weighted by their samples, or by what the loss
function gives as weight. It is not for a sum, for a loss that is divided by a statistic
of the batch, for one that compares the samples of a batch, and for a mean over tokens
that gives no weight. Nobody can see that in the code of a loss function, so a worker
tries it once, with its first batch, before its first pass: it computes the loss of the
batch and those of its pieces, and for each of them the gradient of one small parameter.

Where they differ, and where they cannot be compared, helpers take whole shards from
then on (see `codedgrad.step.pieces`). There is a ConfigError

- where the weights of the pieces do not add up to the shard's, because they are means
  (an accuracy, say);
- where a weight depends on the values of the parameters, and the loss is no mean over
  what it counts (a number of right answers, say). This is tried without helpers, too;
- where the loss function keeps state that its passes change and read, in places of
  which a row knows nothing: the gradient would depend on how many passes a worker has
  made, and so on who was late.

A worker's own shard is a part of the batch, too, and with `same_bits=True` its passes
are parts of a shard. That is no error, but told (see `codedgrad.step.micro`).

A rehearsal leaves nothing behind: random numbers, buffers, flags and what the loss
function keeps in plain values (`codedgrad.step.keep`) are put back.

[Note: random losses] Dropout is switched off. Where a loss function still draws random
numbers, torch's are replaced by such as are the same for a batch and for its pieces
(`codedgrad.step.steady`). Where others are drawn, and the losses differ, nobody knows
whether that is the reason; so helpers take whole shards there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from codedgrad.codes.whole import helps_in_pieces
from codedgrad.errors import ConfigError
from codedgrad.step import micro
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.compare import (
    Value,
    answers_as_weights,
    difference,
    means_as_weights,
)
from codedgrad.step.functions import codes_of
from codedgrad.step.slices import cut
from codedgrad.step.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.codes import Code
    from codedgrad.data import StepShards
    from codedgrad.row.payload import Payload
    from codedgrad.step.context import StepContext
    from codedgrad.step.passes import PassSettings
    from codedgrad.step.subject import Subject

    Key = tuple[int, ...]

log = logging.getLogger("codedgrad")

_LOOKS = 16  # the last own pass that is rehearsed for state, or for a weight
_VALUES = 4  # other values of the parameters in the first rehearsal; then one
_MANY = 4  # pieces of a batch that nobody cuts otherwise
_UNKNOWN = (
    "whether a shard is the mean of its pieces was not tried, because {}. So helpers "
    "take whole shards, which is right for any loss function (this is said once); "
    "pieces=True says that they may take pieces: where the loss is a mean over samples"
)
_NO_PIECES = "a {} cannot be cut into pieces, and they could not be read"
_NO_COPY = "the batch cannot be copied, {}"
_DRAWN = (
    "the loss function draws random numbers, by numpy or `random` say, which are "
    "others for the pieces"
)
_ANOTHER = (
    "the loss function is another function of a shard than of its pieces: {}. "
    "So helpers take whole shards (this is said once). A mean over something "
    "else than samples, such as tokens, should be returned as (loss, weight), "
    "see the README, and a sum divided by the number of samples; for others, "
    "pieces=False says that whole shards are meant"
)


class Asked(NamedTuple):
    """What a rehearsal is to find out.

    Attributes:
        pieces: whether helpers cut shards into pieces, and need not.
        helped: whether anybody helps at all.
        seed: of the random numbers.
        micro: passes of a worker's own shard.
        parts: whether an own pass is one of a part of what the user may mean, the batch
            or a shard, and it is told where that makes a difference.
    """

    pieces: bool
    helped: bool
    seed: int
    micro: int = 1
    parts: bool = False

    @classmethod
    def of(cls, code: Code, settings: PassSettings) -> Asked:
        """Returns what is to be found out where this code says who computes what."""
        listed = zip(code.work, code.required, strict=True)
        helped = any(len(nodes) > required for nodes, required in listed)
        micro = 1 if settings.whole else code.micro
        return cls(
            pieces=settings.choose and helps_in_pieces(code),
            helped=helped,
            seed=settings.seed,
            micro=micro,
            parts=micro > 1 or (settings.tell and code.shards > 1),
        )


@dataclass
class _Open:
    """What is not known yet of a loss function.

    Attributes:
        codes: what it is told from others by; kept alive here.
        passes: own passes so far.
        pieces: whether its pieces are to be compared.
        own: whether they are, because own passes are of parts (`Asked.parts`).
        state: whether it keeps state that it may read later.
        weight: whether its weight may depend on the model.
        doubted: whether the weight does, and may be right all the same.
        seeds: of other values of the parameters that were tried.
    """

    codes: Any
    pieces: bool
    own: bool
    passes: int = -1
    state: bool = False
    weight: bool = True
    doubted: bool = False
    seeds: int = 0


class Rehearsal:
    """Tries the passes of one worker's own items.

    Attributes:
        found: whether helpers have to take whole shards.
        weighed: whether a loss function has given a weight.
    """

    def __init__(self, subject: Subject, payload: Payload, asked: Asked) -> None:
        """Begin; nothing is tried before the first pass."""
        self.subject, self.payload, self.asked = subject, payload, asked
        self._open: dict[Key, _Open | None] = {}  # by the ids of a function's codes
        self._kept: list[Any] = []  # codes, so that the ids stay theirs
        self.found = self.weighed = self._told = False

    def go_on_from(self, before: Rehearsal) -> None:
        """Take over what an earlier laying out of the same model has settled."""
        self._told = before._told
        if before.found:
            self._open, self._kept = before._open, before._kept
            self.weighed = before.weighed

    def look(
        self,
        context: StepContext,
        span: tuple[int, int],
        batch: Sequence[Any],
        place: str,
    ) -> None:
        """Hear of an own pass before it is made; most are not rehearsed.

        Args:
            context: the step.
            span: the micro-batches of the pass: the first, and one past the last.
            batch: the arguments of the loss function.
            place: where in the training that is, for messages.

        Raises:
            ConfigError: the weight is a mean, or depends on the model's answers, or
                the loss function reads state of its own that it changes.
        """
        loss_fn = context.loss_fn
        codes = codes_of(loss_fn)
        key = tuple(map(id, codes))
        if key not in self._open:
            self._kept.append(codes)
            self._open[key] = _Open(codes, self.asked.pieces, self.asked.parts)
        asked = self._open[key]
        if asked is None:
            return
        asked.passes += 1
        if self._due(asked):
            if asked.own:
                batch, span = micro.wider(batch, context.shards, span, self.asked.micro)
            trial = Trial(loss_fn, batch, place)
            trial.of(self.subject, self.payload, self.asked.seed)
            with trial.apart():
                self._try(asked, trial, _Pieces(batch, context.shards, span))
        if asked.passes >= _LOOKS:
            asked.state = asked.own = False
            self._give_up(asked)
        if not (asked.pieces or asked.own or asked.state or asked.weight):
            self._open[key] = None

    def _due(self, asked: _Open) -> bool:
        passes = asked.passes
        if passes & (passes - 1) and passes != 3:
            return False
        # Without helpers there is nothing to find but a weight, which a pass shows.
        return self.asked.helped or asked.own or (passes > 0 and self.weighed)

    def _try(self, asked: _Open, trial: Trial, pieces: _Pieces) -> None:
        """Make one rehearsal.

        Raises:
            ConfigError: as `look` says.
        """
        whole = trial.whole(refuse=self.asked.helped)
        asked.state = asked.state or bool(trial.changed)
        if whole is None:
            if trial.uncopied and asked.pieces:
                asked.pieces = False
                if pieces.many and not self.found:
                    self._find(_UNKNOWN.format(_NO_COPY.format(trial.uncopied)))
            return
        if asked.pieces:
            asked.pieces = not self._compare(trial, whole, pieces)
            if pieces.many:  # and known, it was told
                asked.own = asked.own and asked.pieces
        if asked.own:
            parts, sizes = pieces.several()
            known, text = micro.compare(trial, parts, sizes)
            asked.own = not known
            if text and not self._told:
                self._told = True
                micro.tell_of_loss(self.asked.micro, text)
        if whole.weight is None:
            asked.weight = False
        elif asked.weight:
            self._weigh(asked, trial, whole.weight, pieces)

    # ---- pieces ----

    def _compare(self, trial: Trial, whole: Value, pieces: _Pieces) -> bool:
        """Compare a shard with its pieces; returns whether it is known what they are.

        Raises:
            ConfigError: the weights are means.
        """
        if not pieces.many or self.found:
            return True
        parts = pieces.parts()
        if parts is None:
            self._find(_UNKNOWN.format(_NO_PIECES.format(pieces.title())))
            return True
        try:
            first, *values = trial.together(parts)
        except Abandoned:
            raise
        except Exception as error:  # noqa: BLE001 (of the user's own)
            why = f"it fails for a piece, {type(error).__name__}: {error}"
            self._find(_ANOTHER.format(why))
            return True
        if whole.weight is not None:
            known, text = means_as_weights(first, values)
            if text:
                raise ConfigError(text)
            if not known:
                return False
        known, text = difference(first, values, pieces.sizes)
        if text:
            random = any(v.random for v in (first, *values))
            self._find(_UNKNOWN.format(_DRAWN) if random else _ANOTHER.format(text))
        return known

    def _find(self, text: str) -> None:
        self.found = True
        log.warning("%s", text)

    # ---- weights ----

    def _weigh(
        self, asked: _Open, trial: Trial, weight: float, pieces: _Pieces
    ) -> None:
        """Find out whether a weight depends on the model's answers.

        One that does is right where the loss is a mean over what it counts (the samples
        that the model finds hard, say).

        Raises:
            ConfigError: it depends on them, and is not shown to be right.
        """
        first, asked.seeds = asked.seeds, max(_VALUES, asked.seeds + 1)
        other = trial.other_weight(weight, range(first, asked.seeds))
        if other is None:
            return
        asked.doubted, values = True, []
        parts, sizes = pieces.several()
        if parts is not None:
            try:
                values = trial.without_norms(parts)
            except Abandoned:
                raise
            except Exception:  # noqa: BLE001 (then nothing shows it)
                pass
        right, text = answers_as_weights((weight, other), values, sizes)
        if text:
            raise ConfigError(text)
        if right:
            asked.weight = asked.doubted = False

    def _give_up(self, asked: _Open) -> None:
        """Leave it at what is known of a weight."""
        if asked.weight and asked.doubted:
            log.warning(
                "the weight that the loss function returns depends on the values of "
                "the parameters. That is right only where the loss is a mean over "
                "what it counts. A number of right answers is a metric: return loss, "
                '{"right": right} (this is said once)'
            )
        asked.weight = False


class _Pieces:
    """The pieces of a batch.

    Attributes:
        sizes: samples of each that is not empty.
        taken: whether helpers take any.
    """

    def __init__(
        self, batch: Sequence[Any], shards: StepShards, span: tuple[int, int]
    ) -> None:
        self._batch, self._shards = batch, shards
        self._places = [i for i in range(*span) if shards.sizes[i] > 0]
        rows = getattr(shards.sampler, "rows", 1)
        self.sizes = [shards.sizes[i] * rows for i in self._places]
        self.taken = shards.sampler.helpable  # else nobody takes any

    @property
    def many(self) -> bool:
        """Whether helpers take more than one piece of such a batch."""
        return len(self.sizes) > 1 and self.taken

    def title(self) -> str:
        """Returns what to call the batch."""
        return f"batch of {', '.join(type(v).__name__ for v in self._batch)}"

    def parts(self) -> list[Any] | None:
        """Returns the arguments for each piece; None if there is no way to them."""
        found = cut(self._batch, self.sizes)
        if found is None and self.taken:
            try:
                found = [self._shards.fetch(i) for i in self._places]
            except Abandoned:
                raise
            except Exception:  # noqa: BLE001 (the whole batch was read all the same)
                return None
        return found

    def several(self) -> tuple[list[Any] | None, list[int]]:
        """Returns pieces, and their sizes, also where nobody else needs any.

        There are up to four: counts of two would often be alike.
        """
        total = sum(self.sizes)
        if len(self.sizes) < 2 and total > 1:
            many = min(_MANY, total)
            sizes = [total // many + (i < total % many) for i in range(many)]
            return cut(self._batch, sizes), sizes
        return (self.parts() if total > 1 else None), self.sizes
