"""The owner-decoded exchange as bare MPI calls: what an engine cannot do better than.

Every worker owns a slice. It receives its slice of all gradients, sums them, and sends
the sum to all. Receives are posted beforehand into their final place; there is no
thread, no protocol and no redundancy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from harness import COMM
from mpi4py import MPI

if TYPE_CHECKING:
    from collections.abc import Callable

_ROW, _RESULT = 1, 2


def bare_sum(source: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the exchange of `source`, a tensor in the processor's memory."""
    comm = COMM.Dup()
    n, rank = comm.size, comm.rank
    each = -(-source.numel() // n)
    total = torch.empty_like(source)
    gradient, out = source.numpy(), total.numpy()
    parts = [slice(i * each, (i + 1) * each) for i in range(n)]
    others = [(rank + i) % n for i in range(1, n)]
    rows = [torch.empty_like(source[parts[rank]]).numpy() for _ in range(n)]

    def run() -> torch.Tensor:
        come = [comm.Irecv(rows[i], i, _ROW) for i in others]
        back = [comm.Irecv(out[parts[i]], i, _RESULT) for i in others]
        sent = [comm.Isend(gradient[parts[i]], i, _ROW) for i in others]
        MPI.Request.Waitall(come)
        own = out[parts[rank]]
        own[:] = gradient[parts[rank]]
        for i in others:
            own += rows[i]
        sent += [comm.Isend(own, i, _RESULT) for i in others]
        MPI.Request.Waitall(back + sent)
        return total

    return run
