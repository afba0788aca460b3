"""The random numbers of the drop-in's forwards; see `codedgrad.data.seeding`."""

from __future__ import annotations

from collections import deque

import torch

from codedgrad.data.seeding import seed_pass


class Seeds:
    """Seeds the forwards of a loop that is not ours, some of which are made twice.

    Where a whole model is checkpointed, its forward is made again in the backward, with
    the generators as they were before it. So we keep them, to know it again.
    """

    def __init__(self, seed: int) -> None:
        """Takes the run's seed."""
        self._seed = seed
        self._recent: deque[tuple[torch.Tensor, int, int]] = deque(maxlen=32)

    def next(self, step: int, part: int) -> None:
        """Seeds a forward."""
        before = torch.default_generator.get_state()
        self._recent.append((before, step, part))
        seed_pass(self._seed, step, part)

    def repeat(self) -> None:
        """Seeds a forward as it was seeded before, if it was."""
        now = torch.default_generator.get_state()
        # The user's generators are the same before each step, so the last one counts.
        for before, step, part in reversed(self._recent):
            if torch.equal(before, now):
                seed_pass(self._seed, step, part)
                return
