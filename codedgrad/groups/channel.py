"""What the processes of a group do together.

No call waits for ever: each polls, and looks meanwhile whether the job has failed. A
wait that is given up keeps its memory, which MPI or torch may yet touch.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist

from codedgrad.errors import WorkerError
from codedgrad.job.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from codedgrad.groups.connect import Connection
    from codedgrad.job.runtime import Runtime

_NAP_S = 200e-6  # the longest between two looks
_TICK_S = 1.0  # between two ticks of a wait
_LONGER_S = 5.0  # members wait for their leader that much longer than it for others
_REASON_S = 2.0  # for the reason of a broken connection to arrive


class GroupChannel:
    """One group's processes; all of them make the same calls in the same order.

    Attributes:
        job: the job's runtime on this process.
        ranks: the group's processes, by their ranks in the job; the first one leads.
        size: L, the number of processes.
        member: the number of this process in the group, 0 to L - 1; 0 leads.
        connection: the group in torch.distributed.
    """

    def __init__(
        self, runtime: Runtime, ranks: list[int], connection: Connection
    ) -> None:
        """Open the channel. Collective over the group."""
        self.job = runtime
        self.ranks = ranks
        self.size = len(ranks)
        self.member = ranks.index(runtime.rank)
        self.connection = connection
        self._channel = runtime.channel.of_ranks(ranks)
        # A leader's own waits end first, because it knows for whom it waits.
        self._longer = replace(runtime, timeout_s=runtime.timeout_s + _LONGER_S)
        self._still_used: list[object] = []

    @property
    def leads(self) -> bool:
        """Whether this process is its group's leader."""
        return self.member == 0

    @property
    def gave_up(self) -> bool:
        """Whether a wait ended with an error; its memory may then still be in use."""
        return bool(self._still_used)

    def tell(self, words: Sequence[int], occasion: str) -> list[int]:
        """Return the leader's `words` on every process.

        Args:
            words: the leader's count; the others give as many of their own.
            occasion: completes the sentence "worker 1 waits ..."; as in all calls.

        Raises:
            WorkerError: the job failed, or the leader did not come in time.
        """
        data = np.array(words, np.int64)
        request = self._channel.start_broadcast(data, root=0)
        self._wait(request.test, occasion, keep=request, leader_only=True)
        return list(map(int, data))

    def agree(
        self, ok: bool, occasion: str, meanwhile: Callable[[], object]
    ) -> list[bool]:
        """Return the `ok` of every process, in order of their numbers.

        Args:
            ok: what this process says.
            occasion: see `tell`.
            meanwhile: is called again and again until all have come.

        Raises:
            WorkerError: the job failed, or a process did not come in time.
        """
        mine, every = np.array([ok]), np.zeros(self.size, np.bool_)
        request = self._channel.start_allgather(mine, every)
        self._wait(request.test, occasion, keep=request, meanwhile=meanwhile)
        return list(map(bool, every))

    def gather(self, piece: Tensor, into: list[Tensor] | None) -> Any:
        """Begin to send every process's `piece` to the leader.

        Args:
            piece: what this process sends.
            into: on the leader, memory for one piece per process; on others None.

        Returns:
            The transfer, to be given to `finish`.
        """
        leader, group = self.connection.peers[0], self.connection.group
        return dist.gather(piece, into, leader, group, async_op=True)

    def broadcast(self, total: Tensor, occasion: str) -> None:
        """Copy the leader's `total` into everybody's.

        Raises:
            WorkerError: the job failed, or a process did not come in time.
        """
        leader, group = self.connection.peers[0], self.connection.group
        self.finish(dist.broadcast(total, leader, group, async_op=True), occasion)

    def finish(self, transfer: Any, occasion: str) -> None:
        """Wait for what `gather` began.

        Raises:
            WorkerError: the job failed, or a process did not come in time.
        """
        self._wait(transfer.is_completed, occasion, keep=transfer)
        try:
            transfer.wait()
        except RuntimeError as error:
            # A process that has failed closes its connections, and its reason, which
            # is the one that counts, may arrive after that.
            end = time.monotonic() + _REASON_S
            self._wait(lambda: time.monotonic() > end, occasion, keep=transfer)
            text = f"worker {self.job.rank} lost its local group {occasion}: {error}"
            self.job.fail(text)
            raise WorkerError(text) from None

    def _wait(
        self,
        test: Callable[[], bool],
        occasion: str,
        *,
        keep: object,
        leader_only: bool = False,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Poll `test` until it is True.

        Args:
            test: tells whether the wait is over.
            occasion: see `tell`.
            keep: stays alive if the wait is given up.
            leader_only: only the leader is waited for, not all processes.
            meanwhile: is called between two polls.
        """
        awaited = self.ranks[:1] if leader_only else self.ranks
        others = [r for r in awaited if r != self.job.rank]
        runtime = self._longer if leader_only else self.job
        waiting = Waiting(runtime, occasion, quiet_s=5.0, joined=True)
        begin = ticked = time.monotonic()
        try:
            while not test():
                self._check_job()
                if meanwhile is not None:
                    meanwhile()
                now = time.monotonic()
                if now - ticked >= _TICK_S:
                    ticked = now
                    waiting.tick(others)
                time.sleep(min((now - begin) / 8, _NAP_S))
        except BaseException:
            self._still_used.append(keep)
            raise

    def _check_job(self) -> None:
        if self.job.engine.failed:
            raise self.job.error()
