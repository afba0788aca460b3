"""How a worker tells its supervisor that the others go on if it dies.

A mark is a file in the supervisor's folder, there from the begin of a training that
outlives its workers until its worker leaves the job, in whatever way Python ends it. So
a worker that ends with its mark still there has died, and where all others of the
machine have theirs, too, or have left well, the job goes on without it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Marks:
    """The marks of the workers of one machine.

    Args:
        folder: the supervisor's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, rank: int) -> None:
        """Say that the others outlive this worker."""
        with contextlib.suppress(OSError):  # then its death ends the job, as without
            self._mark(rank).touch()

    def clear(self, rank: int, lost: Iterable[int], *, well: bool) -> None:
        """Say that this worker leaves, whether well, and who it knows to be lost."""
        with contextlib.suppress(OSError):
            for worker in lost:
                (self._folder / f"lost.{worker}").touch()
            if well:
                self._mark(rank).rename(self._folder / f"left.{rank}")
            else:
                self._mark(rank).unlink(missing_ok=True)

    def outlived(self, rank: int) -> bool:
        """Return whether the others outlive this worker."""
        return self._mark(rank).exists()

    def outlives(self, rank: int) -> bool:
        """Return whether this worker outlives others, or has left well."""
        # In this order: it may leave just now.
        return self.outlived(rank) or (self._folder / f"left.{rank}").exists()

    def lost(self) -> list[int]:
        """Return who is lost, by the words of those who have left."""
        found = self._folder.glob("lost.*")
        return sorted(int(path.suffix[1:]) for path in found)

    def _mark(self, rank: int) -> Path:
        return self._folder / f"outlived.{rank}"
