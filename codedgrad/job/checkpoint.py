"""Writing a checkpoint so that there is always a whole one.

A job may be killed at any moment, also while it writes. A file that is written in place
is then neither the old checkpoint nor the new one.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from codedgrad.errors import ConfigError
from codedgrad.job import runtime


def save(path: str | os.PathLike[str], state: Any, *, on_rank: int | None = 0) -> bool:
    """Write a checkpoint for `torch.load`, beside the one before, then in its place.

    The file that was there stays whole until the new one is whole and on disk; whoever
    is killed in between leaves the old file, and one with the ending `.partial` beside
    it, which the next `save` to this path removes. Not a collective: the other workers
    train on, and their engines serve meanwhile.

    Args:
        path: The file; its folder must exist.
        state: What `torch.save` takes, for example a dictionary of state dicts.
        on_rank: The worker that writes, or the first one that is left where it is lost
            (docs/faults.md); the call does nothing on the others. Each worker goes by
            its own view of who is lost: if the one that writes has just died, that
            one call may write nothing. None lets every worker write, each to a path
            of its own.

    Returns:
        Whether this worker has written the file.

    Raises:
        ConfigError: The path is a folder, or its folder does not exist.
        OSError: The file cannot be written; the file before it is as it was.
    """
    joined = runtime.find_current()
    if on_rank is not None and joined is not None:
        if not 0 <= on_rank < joined.size:
            raise ConfigError(
                f"on_rank must be 0 to {joined.size - 1}, or None, got {on_rank}"
            )
        if joined.outside:  # one of those who train writes
            return False
        lost = joined.engine.lost()
        left = [w for w in range(joined.size) if w not in lost]
        if joined.rank != (on_rank if on_rank in left else left[0]):
            return False
    final = Path(path).resolve()  # a link stays one, and what it points to is replaced
    if final.is_dir():
        raise ConfigError(f"{path} is a folder, wanted the name of a file to write")
    if not final.parent.is_dir():
        raise ConfigError(
            f"the folder {final.parent} of the checkpoint {path} does not exist; "
            f"create it first"
        )
    _remove_partial(final)
    try:
        _replace(final, state)
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise OSError(
            cause.errno,
            f"the checkpoint could not be written ({cause.strerror or cause}); the "
            f"file before it, if there was one, is as it was",
            str(path),
        ) from error
    return True


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error; torch turns a full disk into another one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _replace(final: Path, state: Any) -> None:
    """Write `state` beside `final` and let it take that name once it is on disk."""
    descriptor, name = tempfile.mkstemp(
        prefix=f".{final.name}.", suffix=".partial", dir=final.parent
    )
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(_mode_of(final))
        partial.replace(final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on disk, too
    finally:
        os.close(folder)


def _remove_partial(final: Path) -> None:
    """Remove what writers that were killed have left beside `final`."""
    for left in final.parent.glob(f".{_literal(final.name)}.*.partial"):
        left.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """Return a pattern that matches this name only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _mode_of(final: Path) -> int:
    """Return the permissions that the file before had, or those of any new file."""
    try:
        return final.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
