"""Do all workers compute with the same functions?

Any worker may compute any part of a step, so a loss function that is another one on
some worker makes the gradient depend on who was late. Three things are compared:

- In every step the code of the loss function, and that of the sampler's `collate_fn`,
  are a part of the word that the rows carry (`codedgrad.step.check`). Whatever differs
  is an error.
- Before step 0 the workers compare what the loss function can reach by names
  (`codedgrad.step.reach`). Variables that are floating-point numbers or tensors, and
  other models, must be the same everywhere.
- Whole numbers, texts, truths, and what objects hold, may rightly be each worker's own:
  its rank, a folder, whether it writes the log. Where they differ, the log says so by
  name, unless they are the ranks, texts that differ in digits only, or readings of a
  clock.
"""

from __future__ import annotations

import json
import logging
import re
import time
import zlib
from typing import TYPE_CHECKING, Any

from torch import Tensor

from codedgrad.job import agreement
from codedgrad.row.digest import tensor_digest
from codedgrad.step.functions import code_digest, codes_of
from codedgrad.step.reach import Reached

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from codedgrad.job.runtime import Runtime

log = logging.getLogger("codedgrad")

_MOST_KNOWN = 64
_CLOCK = 1e8  # a number beyond is a time
_DAY_S = 86400.0
_SHOWN = 200  # characters of a text
_TYPED = 8  # characters of a number that somebody has chosen
_FUNCTIONS = (
    "Any worker may compute any part of a step, so all need the same functions: run "
    "the same script everywhere, and let the function itself decide by "
    "codedgrad.rank() what only one worker is to do."
)
_OWN = (
    "the workers' loss functions hold different values of %s. That is fine for what "
    "each worker has for itself, like a folder; but any worker may compute any part of "
    "a step, so what the loss is computed with must be the same everywhere"
)


class FunctionsOfAll:
    """Compares the functions of a training, step by step."""

    def __init__(self, job: Runtime) -> None:
        """Compare over all workers of `job`."""
        self._job = job
        # Codes, and their digest, by their ids.
        self._known: dict[tuple[int, ...], tuple[Any, int]] = {}
        self._now: tuple[Any, Any] = None, None

    def word(self, loss_fn: Any, collate_fn: Any) -> int:
        """Note the functions of a step; returns a number that tells them from others.

        Args:
            loss_fn: the loss function; None: it is not known.
            collate_fn: the sampler's; None: it has none of the user's.
        """
        self._now = loss_fn, collate_fn
        return hash((self._digest(loss_fn), self._digest(collate_fn)))

    def _digest(self, function: Any) -> int:
        if function is None:
            return 0
        codes = codes_of(function)
        key = tuple(map(id, codes))
        known = self._known.get(key)
        if known is None:
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            digest = code_digest(function, bytecode=not self._job.unlike)
            known = self._known[key] = codes, digest
        return known[1]

    def compare(self, step: int) -> None:
        """Compare the functions of a step, since words differ. Collective.

        Raises:
            MismatchError: they are not the same.
        """
        if self._now[0] is None:  # as everywhere
            return
        names = "loss function", "collate_fn"
        pairs = [
            (name, "none" if one is None else f"{_title(one)} [{self._digest(one):x}]")
            for name, one in zip(names, self._now, strict=True)
        ]
        agreement.check_agreement(f"functions of step {step}", pairs, _FUNCTIONS)

    def compare_values(self, modules: Iterable[nn.Module]) -> None:
        """Compare what the loss function can reach. Collective; before the first step.

        Args:
            modules: those that are compared elsewhere.

        Raises:
            MismatchError: numbers, tensors or models differ.
        """
        if self._now[0] is None:  # as everywhere
            return
        job, occasion = self._job, "to compare what the loss functions hold"
        strict, own = _values_of(self._now[0], modules)
        mine = json.dumps([strict, own]).encode()
        short = zlib.crc32(mine).to_bytes(4, "big")
        if len(set(job.gather(short, occasion))) == 1:
            return
        every = [json.loads(blob) for blob in job.gather(mine, occasion)]
        # What only some workers have, such as a writer of logs, is no mistake.
        common = [n for n in strict if all(n in one for one, _ in every)]
        pairs = [(name, strict[name]) for name in sorted(common)]
        agreement.check_agreement(
            "values that the loss function holds", pairs, _FUNCTIONS
        )
        common = [n for n in own if all(n in others for _, others in every)]
        names = [n for n in common if differ([others[n] for _, others in every])]
        if names and job.rank == 0:
            log.warning(_OWN, ", ".join(names[:4]) + (" ..." if names[4:] else ""))


def differ(values: list[Any]) -> bool:
    """Returns whether the workers' values differ, and not as their ranks do."""
    if len(set(map(repr, values))) == 1:
        return False
    if all(isinstance(v, str) for v in values):
        return len({re.sub(r"\d+", "#", v) for v in values}) > 1
    if all(isinstance(v, bool) for v in values):
        return len(set(values[1:])) > 1  # else worker 0 alone has it, or has it not
    if not all(type(v) is int for v in values):
        return True
    # Ranks, or those on each machine: each is 0, or follows on the one before.
    after = zip(values[1:], values, strict=False)
    return not (values[0] == 0 and all(b in (0, a + 1) for b, a in after))


def _values_of(
    loss_fn: Any, modules: Iterable[nn.Module]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns by name what must be the same, as texts, and what may differ."""
    reached = Reached(loss_fn, modules)
    strict: dict[str, str] = {}
    own: dict[str, Any] = {}
    for name, value in reached.plain():
        # A variable is there because the function computes with it. Objects also have
        # clocks, counters and whatever else.
        variable = not set(name) & set(".['")
        if isinstance(value, Tensor):
            text = f"digest {tensor_digest(value)}"
            if variable:
                strict[name] = text
            else:
                own[name] = [text]  # a list, which is no text of the user's
        elif isinstance(value, float):
            if variable and not _is_a_time(value):
                strict[name] = repr(value)
            elif len(repr(value)) <= _TYPED:
                own[name] = [repr(value)]
        elif isinstance(value, str):
            own[name] = value[:_SHOWN]
        elif isinstance(value, int):
            own[name] = value
    for place, module in enumerate(reached.modules):
        title = f"{type(module).__name__} {place} of the loss function"
        parameters = module.named_parameters(recurse=False)
        for name, t in (*parameters, *module.named_buffers(recurse=False)):
            strict[f"{name!r} of {title}"] = f"digest {tensor_digest(t)}"
    return strict, own


def _is_a_time(value: float) -> bool:
    """Returns whether a number looks like a reading of a clock of today."""
    recent = 0.0 <= time.monotonic() - value < _DAY_S and len(repr(value)) > _TYPED
    return abs(value) > _CLOCK or recent


def _title(function: Any) -> str:
    named = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(named)
