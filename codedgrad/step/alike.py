"""Do all workers compute with the same functions?

Any worker may compute any part of a step, so a loss function that is another one on
some worker makes the gradient depend on who was late. Two things are compared:

- In every step the code of the loss function, and that of the sampler's `collate_fn`,
  are a part of the word that the rows carry (`codedgrad.step.check`). Whatever differs
  is an error.
- What these functions hold is compared before the first step, and again now and then
  (`codedgrad.step.held`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedgrad.job import agreement
from codedgrad.step.functions import code_digest, code_parts, codes_of

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime

_MOST_KNOWN = 64
FUNCTIONS = (
    "Any worker may compute any part of a step, so all need the same functions: run "
    "the same script everywhere, and let the function itself decide by "
    "codedgrad.rank() what only one worker is to do."
)

NAMES = "loss function", "collate_fn"


class FunctionsOfAll:
    """Compares the functions of a training, step by step.

    Attributes:
        now: the loss function and `collate_fn` of the step.
    """

    def __init__(self, job: Runtime) -> None:
        """Compare over all workers of `job`."""
        self._job = job
        # Codes, and their digest, by their ids.
        self._known: dict[tuple[int, ...], tuple[Any, int]] = {}
        self.now: tuple[Any, Any] = None, None

    def word(self, loss_fn: Any, collate_fn: Any) -> int:
        """Note the functions of a step; returns a number that tells them from others.

        Args:
            loss_fn: the loss function; None: it is not known.
            collate_fn: the sampler's; None: it has none of the user's.
        """
        self.now = loss_fn, collate_fn
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
        if self.now[0] is None:  # as everywhere
            return
        pairs = []
        for name, one in zip(NAMES, self.now, strict=True):
            if one is None:
                pairs.append((name, "none"))
                continue
            # The function, what it holds by name, and all of it together.
            parts = code_parts(one, bytecode=not self._job.unlike)
            pairs += [(f"{name}{path}", text) for path, text in parts]
            pairs.append((name, f"{_title(one)} [{self._digest(one):x}]"))
        agreement.check_agreement(f"functions of step {step}", pairs, FUNCTIONS)


def _title(function: Any) -> str:
    named = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(named)
