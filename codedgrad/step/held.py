"""Do the functions of a training hold the same values on all workers?

What a loss function can reach by names (`codedgrad.step.reach`) is compared before the
first step, and so is what a `collate_fn` can reach. Variables that are floating-point
numbers, arrays of such (to 1 MiB) or tensors, and other models, must be the same
everywhere. Whole numbers, texts, truths, and what objects hold, may rightly be each
worker's own: its rank, a folder, whether it writes the log. Where they differ, the log
says so by name, unless they are the ranks, texts that differ in digits only, or
readings of a clock. A number of many digits that an object or a list holds looks like
something measured and is left out, but not that of a criterion, which is called.

Later one worker alone may change such a value: a factor that is annealed by its own
clock, say. So a digest of the values is a part of the word of some steps (see
`codedgrad.step.check`): 3, 5 and 9 after the first one with these functions, and every
16th after that. It costs no message. Where words differ, all compare by name. Left out
are values that passes change, by what is seen and by what the code stores: what those
of another worker's passes made of them is something else.
"""

from __future__ import annotations

import json
import logging
import re
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from codedgrad.job import agreement
from codedgrad.row.digest import array_digest, tensor_digest
from codedgrad.step.alike import FUNCTIONS, NAMES
from codedgrad.step.keep import SMALL_BYTES
from codedgrad.step.reach import Reached

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from torch import nn

    from codedgrad.job.runtime import Runtime

    Held = dict[str, Any]

log = logging.getLogger("codedgrad")

_SOON, _EVERY, _ALL = (3, 5), 16, 256  # steps after the first with a function
_PLACE = 9  # of such a step in these: parameters are compared in others
_CLOCK = 1e8  # a number beyond is a time
# Of a monotonic clock, a reading of this process. Zero is when the machine started, so
# on one that has just been started a number of some digits could be either.
_EARLIEST = time.monotonic() - 300.0
_SHOWN = 200  # characters of a text
_TYPED = 8  # characters of a number that somebody has chosen
_MEMBERS = 4096  # of a list of numbers that is compared
_OWN = (
    "the workers' loss functions hold different values of %s. That is fine for what "
    "each worker has for itself, like a folder; but any worker may compute any part of "
    "a step, so what the loss is computed with must be the same everywhere"
)
_LATER = "They were the same before, so a worker alone has changed it. " + FUNCTIONS


class ValuesHeld:
    """Compares what the functions of a training hold.

    Attributes:
        compared: whether that was done before the first step.
        looks: whether the word of this step holds a digest of the values.
    """

    def __init__(
        self,
        job: Runtime,
        modules: Iterable[nn.Module],
        changed: Callable[[], Collection[str]] = set,
    ) -> None:
        """Compare over all workers of `job`.

        Args:
            job: all workers.
            modules: those that are compared elsewhere.
            changed: returns the names of what passes were seen to change here.
        """
        self._job, self._modules, self._changed = job, list(modules), changed
        self._own: set[str] = set()  # compared no more, as all workers know
        self._typed: set[str] = set()  # what objects held in some step before
        self._now: tuple[Held, Held] = {}, {}
        self._uses: dict[int, int] = {}  # by functions: in how many steps before
        self.looks = self.compared = False

    def go_on_from(self, before: ValuesHeld) -> None:
        """Take over what is known from an earlier laying out of the same model."""
        self.compared, self._uses = before.compared, before._uses
        self._own, self._typed = before._own, before._typed

    def compare(self, functions: tuple[Any, Any]) -> None:
        """Compare before the first step. Collective.

        Args:
            functions: the loss function, and the `collate_fn`; None: there is none.

        Raises:
            MismatchError: numbers, tensors or models differ.
        """
        self.compared = True
        if functions[0] is None:  # as everywhere
            return
        self._read(functions, full=True)
        occasion = "to compare what the loss functions hold"
        short = zlib.crc32(self._blob()).to_bytes(4, "big")
        if len(set(self._job.gather(short, occasion))) > 1:
            what = "values that the loss function holds"
            self._compare(what, FUNCTIONS, first=True)

    def word(self, functions: tuple[Any, Any], which: int) -> int:
        """Return what the word of a step holds of the values; 0 in most steps.

        Args:
            functions: as for `compare`.
            which: tells these functions from others that take turns with them.
        """
        uses = self._uses.get(which, 0)
        self._uses[which] = uses + 1
        # Functions that come later are looked at in their first step.
        due = uses in _SOON or uses % _EVERY == _PLACE or (not uses and self.compared)
        self.looks = due and functions[0] is not None
        if not self.looks:
            return 0
        self._read(functions, full=uses <= _PLACE or uses % _ALL == _PLACE)
        left_out = self._own | set(self._changed())
        told = [sorted(kind.items()) for kind in self._now]
        kept = [[pair for pair in kind if pair[0] not in left_out] for kind in told]
        return zlib.crc32(json.dumps(kept).encode()) + 1

    def compare_again(self, step: int) -> bool:
        """Compare after the words of a step differed. Collective.

        Returns:
            Whether that is why they did, and is no error.

        Raises:
            MismatchError: numbers, tensors or models differ.
        """
        what = f"values that the loss function holds in step {step}"
        return self._compare(what, _LATER)

    def _read(self, functions: tuple[Any, Any], *, full: bool) -> None:
        """Note the values of this step; `full`: with large tensors."""
        self._now = {}, {}
        for title, function in zip(("", f"{NAMES[1]}'s "), functions, strict=True):
            if function is not None:
                found = _values_of(function, self._modules, self._typed, full=full)
                for kind, values in zip(self._now, found, strict=True):
                    kind.update({title + name: v for name, v in values.items()})
        self._typed.update(self._now[1])

    def _blob(self) -> bytes:
        return json.dumps([*self._now, sorted(self._changed())]).encode()

    def _compare(self, what: str, remedy: str, *, first: bool = False) -> bool:
        """Compare by name; returns whether something is found that is no error."""
        every = [json.loads(b) for b in self._job.gather(self._blob(), f"for {what}")]
        before = set(self._own)
        self._own.update(name for _, _, changing in every for name in changing)
        every_name = {name for one in every for kind in one[:2] for name in kind}
        mine = {**self._now[1], **self._now[0]}
        pairs: list[tuple[str, str]] = []
        told: list[str] = []
        for name in sorted(every_name - self._own):
            # What only some workers have, such as a writer of logs, is no mistake.
            if any(name not in one[0] and name not in one[1] for one in every):
                self._own.add(name)
                continue
            values = [{**one[1], **one[0]}[name] for one in every]
            strict = any(name in one[0] for one in every)
            if strict and not (first and None in values):
                pairs.append((name, str(mine[name])))
            else:
                if differ(values):
                    told.append(name)
                if len(set(map(repr, values))) > 1:  # also where they are ranks
                    self._own.add(name)
        agreement.check_agreement(what, pairs, remedy)
        if told and self._job.rank == 0:
            log.warning(_OWN, ", ".join(told[:4]) + (" ..." if told[4:] else ""))
        return self._own != before or len({tuple(one[2]) for one in every}) > 1


def differ(values: list[Any]) -> bool:
    """Returns whether the workers' values differ, and not as their ranks do."""
    if len(set(map(repr, values))) == 1:
        return False
    if all(isinstance(v, str) for v in values):
        return len({re.sub(r"\d+", "#", v) for v in values}) > 1
    if all(isinstance(v, bool) for v in values):
        return len(set(values[1:])) > 1  # else worker 0 alone has it, or has it not
    if None in values:
        return len({v is None for v in values[1:]}) > 1
    if not all(type(v) is int for v in values):
        return True
    # Ranks, or those on each machine: each is 0, or follows on the one before.
    after = zip(values[1:], values, strict=False)
    return not (values[0] == 0 and all(b in (0, a + 1) for b, a in after))


def _values_of(
    function: Any, modules: Iterable[nn.Module], typed: set[str], *, full: bool
) -> tuple[Held, Held]:
    """Returns by name what must be the same, as texts, and what may differ.

    Args:
        function: a loss function, or a `collate_fn`.
        modules: those that are compared elsewhere.
        typed: names of what is compared whatever it looks like.
        full: whether large tensors are read, those on devices, and other models.
    """
    reached = Reached(function, modules)
    strict: Held = {}
    own: Held = {}
    stored = reached.stored
    for name, value in reached.plain():
        # A variable is there because the function computes with it. Objects also have
        # clocks, counters and whatever else.
        variable = not set(name) & set(".['")
        if name in stored:
            continue
        if value is None and variable:
            own[name] = None
        elif isinstance(value, Tensor | np.ndarray):
            if full or _is_small(value):
                text = _digest(value)
                if variable and (isinstance(value, Tensor) or value.dtype.kind in "fc"):
                    strict[name] = text
                else:
                    own[name] = [text]  # a list, which is no text of the user's
        elif isinstance(value, float | complex | np.inexact):
            text = repr(value.item() if isinstance(value, np.inexact) else value)
            clock = _is_a_time(value)
            if variable and not clock:
                strict[name] = text
            elif (
                len(text) <= _TYPED
                or name in typed
                or (name in reached.chosen and not clock)
            ):
                own[name] = [text]
        elif isinstance(value, str):
            own[name] = value[:_SHOWN]
        elif isinstance(value, int | np.integer):
            own[name] = value if isinstance(value, int) else int(value)
    for name, members in reached.long.items():
        if name not in stored and _are_typed(members):
            own[name] = [f"digest {zlib.crc32(repr(members).encode())}"]
    for place, module in enumerate(reached.modules if full else []):
        title = f"{type(module).__name__} {place} of the loss function"
        parameters = module.named_parameters(recurse=False)
        for name, t in (*parameters, *module.named_buffers(recurse=False)):
            strict[f"{name!r} of {title}"] = f"digest {tensor_digest(t)}"
    return strict, own


def _are_typed(members: Sequence[Any]) -> bool:
    """Returns whether these are floats that somebody has chosen, and not a log."""
    few = len(members) <= _MEMBERS
    return few and all(type(v) is float and len(repr(v)) <= _TYPED for v in members)


def _digest(value: Tensor | np.ndarray) -> str:
    if isinstance(value, Tensor):
        return f"digest {tensor_digest(value)}"
    return f"digest {array_digest(value)}"


def _is_small(value: Tensor | np.ndarray) -> bool:
    on_cpu = not isinstance(value, Tensor) or value.device.type == "cpu"
    return value.nbytes <= SMALL_BYTES and on_cpu


def _is_a_time(value: Any) -> bool:
    """Returns whether a number looks like a reading of a clock by this process."""
    if isinstance(value, complex | np.complexfloating):
        return False
    value = float(value)
    recent = _EARLIEST <= value <= time.monotonic() and len(repr(value)) > _TYPED
    return abs(value) > _CLOCK or recent
