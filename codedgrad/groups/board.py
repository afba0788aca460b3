"""A page of shared memory in which a leader tells its group how far it is.

A pass looks at it at every module boundary, far too often for a message.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from codedgrad.groups.channel import GroupChannel

_SHARED = Path("/dev/shm")


class Board:
    """Numbers that the leader writes and all processes of its group read.

    No lock is needed, because the numbers only ever rise and each is read alone:

        words[0]        the last step that is decoded
        words[1 + i]    the last round of help in which the work of member i is needless
    """

    def __init__(self, group: GroupChannel) -> None:
        """Share a new page in every group. Collective over the job."""
        path = b""
        if group.leads:
            folder = _SHARED if os.access(_SHARED, os.W_OK) else None
            descriptor, name = tempfile.mkstemp(prefix="codedgrad-", dir=folder)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(mmap.PAGESIZE + 8 * group.size)
            path = name.encode()
        paths = group.job.gather(path, "to share memory")
        mine = Path(paths[group.ranks[0]].decode())
        with mine.open("r+b") as file:
            self._words = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
        if group.leads:
            self._words[:] = -1
        group.job.gather(b"", "to share memory")
        if group.leads:
            mine.unlink()  # all processes have it mapped; its name is not needed

    @property
    def decoded(self) -> int:
        """The last step that is decoded; -1 before the first."""
        return int(self._words[0])

    def raise_decoded(self, step: int) -> None:
        """Show that `step` is decoded; for the leader."""
        if step > self._words[0]:
            self._words[0] = step

    def cancelled(self, member: int) -> int:
        """Return the last round of help in which this member's work is needless."""
        return int(self._words[1 + member])

    def cancel(self, member: int, round_: int) -> None:
        """Show that this member's work in the round is needless; for the leader."""
        self._words[1 + member] = round_
