"""When the rows of parts that are done go out, and as which rows.

Every message that comes makes an engine look for the next one, which takes a
millisecond from the passes that compute on the same core. So while all compute, nothing
is sent: rows wait here, and neighbours are added up to the node above them. A worker
that has nothing more to compute sends what it has, and that is the sign for the others:
there is somebody who could help, and has to know what is done. From then on they send
each part at once. Every second or so rows go out in any case, so that little is lost
with a worker that stands still.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.inference.row import LINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.inference.row import Format, Marks, Row
    from codedgrad.inference.session import Session

_LOOK_S = 1e-3  # between two looks whether somebody is idle
_LEAST_S = 1.0  # between two rows while nobody is
_OF_A_WORKER_S = 0.2  # times the workers, so that few rows come in a second
_SHARE, _BYTES_S = 0.05, 1e9  # of the time may go into sending, at this rate


class Outbox:
    """The rows of one evaluation that are done here and not sent."""

    def __init__(
        self, session: Session, form: Format, idle: Callable[[], bool]
    ) -> None:
        """Begin with nothing to send.

        Args:
            session: sends rows.
            form: of the rows.
            idle: whether another worker has done its share.
        """
        self._session, self._form, self._idle = session, form, idle
        self._rows: dict[int, tuple[Row, Marks]] = {}
        workers = session.job.size
        size_s = 8 * LINE * form.lines * workers / _BYTES_S / _SHARE
        self._least_s = max(_LEAST_S, _OF_A_WORKER_S * workers, size_s)
        self._at_once = False
        self._sent_s = self._looked_s = time.monotonic()

    def add(self, node: int, payload: Row, marks: Marks) -> None:
        """Take the payload of a node; send it now or later."""
        tree = self._session.tree
        while (parent := int(tree.parent[node])) >= 0:
            left, right = int(tree.left[parent]), int(tree.right[parent])
            other = self._rows.pop(right if node == left else left, None)
            if other is None:
                break
            one, two = (payload, other[0]) if node == left else (other[0], payload)
            with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is a NaN
                node, payload = parent, one + two
        self._rows[node] = payload, marks
        self.look()

    def look(self) -> None:
        """Send what is here if somebody is idle, or if it has waited for long."""
        now = time.monotonic()
        if not self._rows or (not self._at_once and now - self._looked_s < _LOOK_S):
            return
        self._looked_s = now
        self._at_once = self._at_once or self._idle()
        if self._at_once or now - self._sent_s >= self._least_s:
            self.flush()

    def flush(self) -> None:
        """Send everything."""
        tree = self._session.tree
        for node, (payload, marks) in self._rows.items():
            leaves = int(tree.stop[node] - tree.start[node])
            self._session.post(node, self._form.marked(payload, marks, leaves))
        self._rows.clear()
        self._sent_s = time.monotonic()
