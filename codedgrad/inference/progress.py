"""A progress bar on worker 0, by tqdm where that is installed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from codedgrad.errors import missing_extra

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from codedgrad.inference.parts import Shares
    from codedgrad.inference.session import Session

_EVERY_S = 0.2


class Bar:
    """Shows how many batches are done, by all workers together."""

    def __init__(self, *, show: bool | None, total: int) -> None:
        """Prepare.

        Args:
            show: False shows none; None shows one where the errors go to a terminal.
            total: number of batches.

        Raises:
            EnvironmentSetupError: one is wanted, and there is no tqdm.
        """
        self._next_s = 0.0
        self._bar: Any = None
        if show is False:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            if show:
                raise missing_extra("progress", error) from error
            return
        disable = None if show is None else False
        self._bar = tqdm(
            total=total, desc="evaluate", unit="batch", disable=disable, leave=False
        )

    def show(self, session: Session, shares: Shares) -> None:
        """Look what has arrived, a few times a second."""
        now = time.monotonic()
        if self._bar is None or self._bar.disable or now < self._next_s:
            return
        self._next_s = now + _EVERY_S
        has, number = session.exchange.has, session.number
        here = sum(p.stop - p.first for p in shares.parts if has(number, p.node))
        self._bar.update(here - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
