"""How long an idle worker waits before it starts a redundant pass.

The patience is a fraction of the worker's usual time for its own pass. Where workers
finish at scattered times although none is a straggler (a busy machine), a short
patience starts passes that help nobody and slow everybody. So the patience learns. It
doubles (up to a whole pass) after a step in which all redundant passes proved useless,
because the workers they stood in for arrived after all. One useful pass and, slowly,
every step bring it back towards the setting: a worker that stalls after a noisy time
must not be waited for.

Passes of some milliseconds are late by a slice of the operating system's scheduler now
and then. A delay below that is no reason to help, unless patience 0 asks for it.
"""

from __future__ import annotations

from codedgrad.errors import ConfigError

_LONGEST = 1.0  # passes
_FORGET = 0.97  # factor of the excess over the setting, per step
_SLICE_S = 3e-3  # a preempted thread is back after about that time
_WARM_UP = 3  # steps whose times say little (first allocations, caches)


class Patience:
    """The current patience of one worker."""

    def __init__(self, setting: float) -> None:
        """Begin with `setting`, a fraction of a pass such as 0.1.

        Raises:
            ConfigError: the setting is out of range.
        """
        if not 0.0 <= setting <= 100.0:
            raise ConfigError(
                f"patience is a fraction of a pass, 0 to 100 (default 0.1), "
                f"got {setting}"
            )
        self.setting = setting
        self.now = setting
        self._steps = 0

    def seconds(self, pass_s: float) -> float:
        """Returns the seconds to wait, for a worker whose pass takes `pass_s`."""
        self._steps += 1
        self.now = self.setting + _FORGET * (self.now - self.setting)
        if self._steps <= _WARM_UP:
            return max(self.now, _LONGEST) * pass_s
        shortest = min(_SLICE_S, pass_s) if self.setting > 0.0 else 0.0
        return max(shortest, self.now * pass_s)

    def helped(self, *, useful: bool) -> None:
        """Learn from a step with redundant passes, of which one was needed or none.

        It is called once per step: where many are late at a time, most passes prove
        useless, and yet the step ends earlier for the others.
        """
        if useful:
            self.now = max(self.setting, 0.7 * self.now)
        else:
            longest = max(self.setting, _LONGEST)
            self.now = min(longest, max(2.0 * self.now, 0.05))
