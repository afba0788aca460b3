"""Whether a script ended with `sys.exit(n)`, which Python tells nobody.

Python calls no hook for SystemExit, and the functions that `atexit` calls are not told
the status. So the functions that raise it are wrapped and note the status, and the
script's outermost frame says at the end whether an exception ended it, or whether some
`except SystemExit` has caught the exit and the script went on.

A script that raises SystemExit itself, without `sys.exit`, looks as if it had ended
well; the others then notice that it made fewer steps.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class ScriptEnd:
    """Notes how the script of this process ends."""

    def __init__(self) -> None:
        """Begin to watch; to be called while the script runs."""
        self._status: Any = None
        self._outermost = _outermost_frame()
        sys.exit = self._noting(sys.exit)
        quitter = type(getattr(builtins, "exit", None))
        if quitter.__name__ == "Quitter":  # of `exit` and `quit`; made by `site`
            call: Any = quitter.__call__
            quitter.__call__ = self._noting(call, status=1)  # type: ignore[method-assign]

    def failure(self) -> str | None:
        """Return how a script that has ended said that it failed, or None."""
        status, frame = self._status, self._outermost
        self._outermost = None  # it keeps the script's variables alive
        if status is None or status == 0 or frame is None or _has_returned(frame):
            return None
        return f"its script ended with sys.exit({status!r})"

    def _noting(self, leave: Callable[..., Any], status: int = 0) -> Callable[..., Any]:
        """Wrap a function that raises SystemExit; its argument `status` is noted."""

        @functools.wraps(leave)
        def noting(*args: Any, **keywords: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                given = args[status : status + 1] or tuple(keywords.values())
                self._status = given[0] if given else None
            return leave(*args, **keywords)

        return noting


def _outermost_frame() -> FrameType | None:
    """Return the frame of the main thread that all others are called from."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _has_returned(frame: FrameType) -> bool:
    """Return whether a frame that is over ended by a return, not by an exception."""
    code = frame.f_code.co_code
    return dis.opname[code[frame.f_lasti]].startswith("RETURN")
