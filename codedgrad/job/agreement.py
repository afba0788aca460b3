"""Workers compare what they are about to do, before they do it.

A code, a model or a seed that differs between workers would show as a hang or as wrong
gradients. Compared at the start, it is one clear error on every worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.errors import MismatchError
from codedgrad.job import runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECORD, _UNIT = "\x1e", "\x1f"  # ASCII's separators of pairs, and of name and value


def check_agreement(subject: str, mine: Sequence[tuple[str, str]]) -> None:
    """Compare named descriptions over all workers. Collective.

    Args:
        subject: names what is compared, for the message.
        mine: (name, value) pairs in order; all workers must have the same.

    Raises:
        MismatchError: they differ; raised on every worker, with the workers that
            differ from worker 0 and the first difference of each.
    """
    blob = _RECORD.join(f"{name}{_UNIT}{value}" for name, value in mine).encode()
    blobs = runtime.current().gather(blob, f"to compare the {subject}")
    problems = [
        f"worker {worker} {_difference(blobs[0], theirs)}"
        for worker, theirs in enumerate(blobs)
        if theirs != blobs[0]
    ]
    if problems:
        raise MismatchError(
            f"the workers disagree about the {subject}: "
            + "; ".join(problems)
            + ". Run the same script with the same arguments on every worker."
        )


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
