"""Local groups: processes of one machine that are one worker of the code together.

A group's first process, its leader, takes part in the coded exchange, over a
communicator and an engine that only leaders have. Inside a group

- what is decided travels by MPI (a few numbers; also where rows travel by NCCL);
- rows and sums travel by torch.distributed, NCCL on GPUs, else Gloo;
- what the leader has decoded is seen in a page of shared memory, so that a pass can
  look at every module boundary.

No call here waits for ever: all poll, and look whether the job has failed meanwhile.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from codedgrad.errors import ConfigError, MismatchError, WorkerError
from codedgrad.job import runtime
from codedgrad.job.runtime import Runtime, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_NAP_S = 200e-6  # the longest between two looks
_TIE_S = 0.1  # until a failure of one engine is known to the other
_LONGER_S = 5.0
_REASON_S = 2.0  # for a broken connection's reason to be told
_SHARED = Path("/dev/shm")


def partition(spec: str | int, nodes: Sequence[int]) -> list[list[int]]:
    """The groups' ranks, in order of their first ones.

    Args:
        spec: "node", the processes of each machine; or a number of consecutive ranks.
        nodes: the machine of every rank.

    Raises:
        ConfigError: no such spec, groups of unequal sizes, or over several machines.
    """
    if spec == "node":
        groups = [
            [r for r, node in enumerate(nodes) if node == n]
            for n in dict.fromkeys(nodes)
        ]
    elif isinstance(spec, int) and not isinstance(spec, bool) and spec >= 1:
        ranks = list(range(len(nodes)))
        groups = [ranks[i : i + spec] for i in ranks[::spec]]
    else:
        raise ConfigError(
            f'local_group must be "node", a number of processes, or None, got {spec!r}'
        )
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"local_group={spec!r} cuts {len(nodes)} processes into groups of unequal "
            f"sizes, {', '.join(map(str, sizes))} by group; start as many processes on "
            f"every machine, or choose a local_group that divides them"
        )
    for index, group in enumerate(groups):
        if len({nodes[r] for r in group}) > 1:
            raise ConfigError(
                f"local_group={spec!r} puts processes of several machines into group "
                f"{index} (ranks {group}); place neighbouring ranks on one machine "
                f'(mpirun --map-by slot), or use local_group="node"'
            )
    return groups


def form(
    here: Runtime, spec: str | int | None, model: torch.nn.Module
) -> LocalGroup | None:
    """This process's group; None where groups have one process. Collective.

    Raises:
        ConfigError: see `partition`; on every process.
        MismatchError: the processes want different groups.
    """
    if spec is None:
        return None
    device = next((p.device.type for p in model.parameters()), "cpu")
    backend = "nccl" if device == "cuda" else "gloo"
    runtime.check_agreement("local groups", [("local_group", f"{spec!r} on {device}")])
    nodes = [
        int(b)
        for b in here.gather(str(here.cross_rank).encode(), "to form local groups")
    ]
    groups = partition(spec, nodes)
    if len(groups[0]) == 1:
        return None
    name = f"local_group={spec} {backend}"
    part = here.parts.get(name)
    if not isinstance(part, LocalGroup):
        part = here.parts[name] = LocalGroup(here, groups, backend)
    return part


class LocalGroup:
    """This process's place in its group, and what the group's processes do together.

    Attributes:
        count: number of groups.
        index: of this group; the worker's number in the code.
        size: L, processes of a group.
        member: this process's number in its group; 0 leads.
        across: the leaders' runtime, None on others.
    """

    def __init__(self, here: Runtime, groups: list[list[int]], backend: str) -> None:
        """Connect the processes. Collective over the job."""
        self.here = here
        self.count, self.size = len(groups), len(groups[0])
        self.index = next(i for i, g in enumerate(groups) if here.rank in g)
        self.ranks = groups[self.index]
        self.member = self.ranks.index(here.rank)
        # First what may fail: the engine below runs until `stop`.
        self._group, self._peers, self._began = _process_group(here, groups, backend)
        self._comm = _part_of(here, self.ranks)
        self.across: Runtime | None = None
        self._tie: _Tie | None = None
        if self.leads:
            leaders = _part_of(here, [ranks[0] for ranks in groups])
            self.across = here.over(leaders, "group")
            self._tie = _Tie(here.engine, self.across.engine)
        # A leader's own waits end first: it knows for whom.
        self._longer = replace(here, timeout_s=here.timeout_s + _LONGER_S)
        self._stuck: list[Any] = []  # waits given up: what MPI or torch may yet touch

    @property
    def leads(self) -> bool:
        """Is this process its group's leader?"""
        return self.member == 0

    def stop(self, timeout_s: float) -> bool:
        """At the end of the job, see `runtime.Part`."""
        clean = not self._stuck
        if self._tie is not None:
            self._tie.end()
        if self.across is not None:
            clean = bool(self.across.engine.stop(timeout_s)) and clean
        if clean and dist.is_initialized():  # else the user has ended it
            with contextlib.suppress(ValueError, RuntimeError):
                dist.destroy_process_group(None if self._began else self._group)
        return clean

    # ---- together, in the same order on every process of the group ----

    def tell(self, words: Sequence[int], what: str) -> list[int]:
        """The leader's `words` on every process; others give as many of their own."""
        data = np.array(words, np.int64)
        request = self._comm.Ibcast(data, root=0)
        self._until(request.Test, what, keep=(request, data), whom=self.ranks[:1])
        return list(map(int, data))

    def agree(self, ok: bool, what: str, meanwhile: Callable[[], object]) -> list[bool]:
        """`ok` of every process. `meanwhile` is called again and again."""
        mine, all_of_us = np.array([ok]), np.zeros(self.size, np.bool_)
        request = self._comm.Iallgather(mine, all_of_us)
        self._until(request.Test, what, keep=(request, mine, all_of_us), idle=meanwhile)
        return list(map(bool, all_of_us))

    def gather(self, piece: Tensor, into: list[Tensor] | None) -> Any:
        """Begin to send `piece` to the leader, who gives one tensor per process."""
        leader = self._peers[0]
        return dist.gather(piece, into, leader, self._group, async_op=True)

    def broadcast(self, total: Tensor, what: str) -> None:
        """The leader's `total` into everybody's."""
        self.finish(dist.broadcast(total, self._peers[0], self._group, True), what)

    def finish(self, work: Any, what: str) -> None:
        """Wait for what `gather` began.

        Raises:
            WorkerError: the job failed.
        """
        self._until(work.is_completed, what, keep=work)
        try:
            work.wait()
        except RuntimeError as error:
            # A process that has failed closes its connections; its reason counts.
            end = time.monotonic() + _REASON_S
            self._until(lambda: time.monotonic() > end, what, keep=work)
            text = f"worker {self.here.rank} lost its local group {what}: {error}"
            self.here.fail(text)
            raise WorkerError(text) from None

    def _until(
        self,
        test: Callable[[], bool],
        what: str,
        *,
        keep: object,
        whom: list[int] | None = None,
        idle: Callable[[], object] | None = None,
    ) -> None:
        """Poll `test`; `keep` outlives a wait that is given up."""
        others = [r for r in (whom or self.ranks) if r != self.here.rank]
        waiting = Waiting(self._longer if whom else self.here, what, quiet_s=5.0)
        begin = told = time.monotonic()
        try:
            while not test():
                self._look()
                if idle is not None:
                    idle()
                now = time.monotonic()
                if now - told >= 1.0:
                    told = now
                    waiting.tick(others)
                time.sleep(min((now - begin) / 8, _NAP_S))
        except BaseException:
            self._stuck.append(keep)
            raise

    def _look(self) -> None:
        if self.here.engine.failed:
            raise self.here.error()


class Board:
    """Numbers that the leader writes and its group's processes read, in shared memory.

    decoded: the last step that is; cancelled[i]: the last round of help in which what
    process i does is not needed. Only ever raised, and each read alone: no lock.
    """

    def __init__(self, group: LocalGroup) -> None:
        """A new page. Collective over the job."""
        path = b""
        if group.leads:
            folder = _SHARED if os.access(_SHARED, os.W_OK) else None
            number, name = tempfile.mkstemp(prefix="codedgrad-", dir=folder)
            with os.fdopen(number, "r+b") as file:
                file.truncate(mmap.PAGESIZE + 8 * group.size)
            path = name.encode()
        paths = group.here.gather(path, "to share memory")
        mine = Path(paths[group.ranks[0]].decode())
        with mine.open("r+b") as file:
            self._words = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
        if group.leads:
            self._words[:] = -1
        group.here.gather(b"", "to share memory")
        if group.leads:
            mine.unlink()

    @property
    def decoded(self) -> int:
        """See the class."""
        return int(self._words[0])

    def raise_decoded(self, step: int) -> None:
        """`step` is decoded."""
        if step > self._words[0]:
            self._words[0] = step

    def cancelled(self, member: int) -> int:
        """See the class."""
        return int(self._words[1 + member])

    def cancel(self, member: int, round_: int) -> None:
        """What `member` does in this round is not needed."""
        self._words[1 + member] = round_


class _Tie(threading.Thread):
    """Makes a failure of one of two engines one of both."""

    def __init__(self, *engines: Any) -> None:
        super().__init__(name="codedgrad-tie", daemon=True)
        self._engines = engines
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(_TIE_S):
            if self._pass_on():
                return

    def end(self) -> None:
        self._over.set()
        self.join()
        self._pass_on()  # the others hear why before they hear goodbye

    def _pass_on(self) -> bool:
        texts = [e.failure for e in self._engines if e.failed]
        if texts:
            for engine in self._engines:
                engine.fail(texts[0])  # nothing, on the one that has failed
        return bool(texts)


def _part_of(here: Runtime, ranks: list[int]) -> Any:
    """A communicator of these ranks. Collective over them."""
    # Not Split: Open MPI's keep no MPI_TAG_UB, and the engine would have 15 bits.
    group = here.comm.Get_group()
    part = group.Incl(ranks)
    comm = here.comm.Create_group(part)
    for done in (part, group):
        done.Free()
    return comm


def _process_group(
    here: Runtime, groups: list[list[int]], backend: str
) -> tuple[Any, list[int], bool]:
    """(own group, its ranks in torch.distributed, whether we have initialised that).

    Raises:
        MismatchError: torch.distributed is initialised on some processes only.
    """
    timeout = timedelta(seconds=here.timeout_s)
    mine = str(dist.get_rank() if dist.is_initialized() else -1)
    told = here.gather(mine.encode(), "to connect its local group")
    ranks = [int(b) for b in told]
    began = max(ranks) < 0
    if began:
        # Every process has a rank of ours; it is the one in torch.distributed, too.
        ranks = list(range(here.size))
        _initialise(here, timeout)
    elif min(ranks) < 0:
        without = [w for w, r in enumerate(ranks) if r < 0]
        raise MismatchError(
            f"torch.distributed is initialised, but not on worker(s) {without}; "
            f"initialise it on all or on none"
        )
    ours = None
    for group in groups:  # every process makes every group, as torch wants it
        peers = [ranks[r] for r in group]
        made = dist.new_group(peers, timeout=timeout, backend=backend)
        if here.rank in group:
            ours = made, peers
    assert ours is not None  # groups have every rank
    return *ours, began


def _initialise(here: Runtime, timeout: timedelta) -> None:
    """torch.distributed on all processes, at a free port of the first one's machine."""
    TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
    store, place = None, b""
    if here.rank == 0:
        host = "127.0.0.1"
        if here.cross_size > 1:
            host = socket.gethostbyname(socket.gethostname())
        store = TCPStore(host, 0, here.size, True, timeout, wait_for_workers=False)
        place = f"{host} {store.port}".encode()
    told = here.gather(place, "to start torch.distributed")
    if store is None:
        host, port = told[0].decode().split()
        store = TCPStore(host, int(port), here.size, False, timeout)
    dist.init_process_group(
        "gloo", store=store, rank=here.rank, world_size=here.size, timeout=timeout
    )
