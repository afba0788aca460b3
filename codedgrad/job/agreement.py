"""Workers compare what they are about to do, before they do it.

A code, a model or a seed that differs between workers would show as a hang or as wrong
gradients. Compared at the start, it is one clear error on every worker.

Where all agree, which is nearly always, each worker sends the others a hash of a few
bytes. The texts travel only after the hashes have differed.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from codedgrad.errors import MismatchError, WorkerError
from codedgrad.job import runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECORD, _UNIT = "\x1e", "\x1f"  # ASCII's separators of pairs, and of name and value
_HASH_BYTES = 16
_REMEDY = "Run the same script with the same arguments on every worker."


def check_agreement(
    subject: str, mine: Sequence[tuple[str, str]], remedy: str = _REMEDY
) -> None:
    """Compare named descriptions over all workers. Collective.

    Args:
        subject: names what is compared, for the message.
        mine: (name, value) pairs in order; all workers must have the same.
        remedy: ends the message.

    Raises:
        MismatchError: they differ; raised on every worker, with the workers that
            differ from worker 0 and the first difference of each.
    """
    job = runtime.current()
    blob = _blob(mine)
    if len(set(job.gather(digest_of(mine), f"to compare the {subject}"))) == 1:
        return
    blobs = job.gather(blob, f"to find the difference of the {subject}")
    problems = [
        f"{job.unit} {worker} {_difference(blobs[0], theirs)}"
        for worker, theirs in enumerate(blobs)
        if theirs != blobs[0]
    ]
    raise everywhere(
        job, f"{runtime.DISAGREE}{subject}: {'; '.join(problems)}. {remedy}"
    )


def digest_of(mine: Sequence[tuple[str, str]]) -> bytes:
    """Return a few bytes that are the same where (name, value) pairs are the same."""
    return hashlib.blake2b(_blob(mine), digest_size=_HASH_BYTES).digest()


def everywhere(job: runtime.Runtime, text: str) -> MismatchError:
    """Return an error that all workers are about to raise. Collective.

    A worker that raises may end its process, and so the job. Nobody does before all
    know what they have to raise.
    """
    error = MismatchError(text)
    error.everywhere = True
    together(job)
    return error


def together(job: runtime.Runtime) -> None:
    """Wait until all workers know the error that all are about to raise. Collective."""
    # Whoever fails now has got the texts before, like this worker.
    with contextlib.suppress(WorkerError, MismatchError):
        job.gather(b"", "to raise an error together")


def _blob(mine: Sequence[tuple[str, str]]) -> bytes:
    return _RECORD.join(f"{name}{_UNIT}{value}" for name, value in mine).encode()


def _difference(reference: bytes, other: bytes) -> str:
    """Describe the first pair in which another worker differs from worker 0."""
    ours, theirs = _pairs(reference), _pairs(other)
    for position in range(max(len(ours), len(theirs))):
        a = ours[position] if position < len(ours) else ["nothing", "nothing"]
        b = theirs[position] if position < len(theirs) else ["nothing", "nothing"]
        if a[0] != b[0]:
            return f"has {b[0]} ({b[-1]}) where worker 0 has {a[0]} ({a[-1]})"
        if a != b:
            return f"has {a[0]} = {b[-1]}, worker 0 has {a[-1]}"
    return "differs"


def _pairs(blob: bytes) -> list[list[str]]:
    return [pair.split(_UNIT) for pair in blob.decode().split(_RECORD)]
