"""How groups are connected: by torch.distributed inside, by an engine among leaders."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from codedgrad.errors import EnvironmentSetupError, MismatchError
from codedgrad.job import addresses, environment

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime

_TIE_S = 0.1  # until the failure of one engine is known to the other


@dataclass(frozen=True)
class Connection:
    """A local group in torch.distributed.

    Attributes:
        group: its process group.
        peers: the ranks of its processes in torch.distributed, the leader's first.
        began: whether codedgrad initialised torch.distributed; then it ends it, too.
    """

    group: Any
    peers: list[int]
    began: bool

    def close(self) -> None:
        """End the group, unless the user has ended torch.distributed before."""
        if dist.is_initialized():
            with contextlib.suppress(ValueError, RuntimeError):
                dist.destroy_process_group(None if self.began else self.group)


def connect(runtime: Runtime, groups: list[list[int]], backend: str) -> Connection:
    """Connect the processes of every group. Collective over the job.

    Where torch.distributed is initialised already, its ranks are used as they are.

    Args:
        runtime: the job.
        groups: the ranks of each group.
        backend: of torch.distributed, "nccl" or "gloo".

    Returns:
        The connection of this process's group.

    Raises:
        MismatchError: torch.distributed is initialised on some processes only.
    """
    timeout = timedelta(seconds=runtime.timeout_s)
    mine = str(dist.get_rank() if dist.is_initialized() else -1)
    blobs = runtime.gather(mine.encode(), "to connect its local group")
    ranks = [int(b) for b in blobs]
    began = max(ranks) < 0
    if began:
        ranks = list(range(runtime.size))  # as in the job
        _initialise(runtime, timeout)
    elif min(ranks) < 0:
        without = [w for w, r in enumerate(ranks) if r < 0]
        raise MismatchError(
            f"torch.distributed is initialised, but not on worker(s) {without}; "
            f"initialise it on all or on none"
        )
    ours = None
    for members in groups:  # torch wants every process to make every group
        peers = [ranks[r] for r in members]
        group = dist.new_group(peers, timeout=timeout, backend=backend)
        if runtime.rank in members:
            ours = Connection(group, peers, began)
    assert ours is not None  # every rank is in a group
    return ours


def _initialise(runtime: Runtime, timeout: timedelta) -> None:
    """Start torch.distributed, at a free port of the first process's machine."""
    TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
    several = runtime.place.cross_size > 1
    store, told = None, b""
    if runtime.rank == 0:
        # It listens at all addresses of this machine, and itself connects to this one.
        store = TCPStore(
            addresses.LOOPBACK, 0, runtime.size, True, timeout, wait_for_workers=False
        )
        hosts = addresses.candidates() if several else []
        told = " ".join([str(store.port), *hosts]).encode()
    told = runtime.gather(told, "to start torch.distributed")[0]
    port, *hosts = told.decode().split()
    near = runtime.place.cross_rank == 0  # on the machine of the store
    host, local, problem = addresses.LOOPBACK, "", ""
    try:
        if not near:
            host, local = addresses.first_reachable(hosts, int(port))
        if store is None:
            store = TCPStore(host, int(port), runtime.size, False, timeout)
    except OSError as error:
        problem = f"worker {runtime.rank}: {error}"
    answer = "" if near else host
    blobs = runtime.gather(f"{answer}|{problem}".encode(), "to reach the first worker")
    reached = [blob.decode().split("|", 1) for blob in blobs]
    if problems := [words for _, words in reached if words]:
        raise EnvironmentSetupError(
            f"torch.distributed cannot be started: {'; '.join(problems)}. Tell worker "
            f"0's address that all machines reach: mpirun -x CODEDGRAD_ADDRESS=..."
        )
    if near:  # Gloo is to listen where the other machines have reached this one
        local = next((host for host, _ in reached if host), "")
    interface = addresses.interface_of(local) if local else None
    with environment.gloo_interface(interface):
        dist.init_process_group(
            "gloo",
            store=store,
            rank=runtime.rank,
            world_size=runtime.size,
            timeout=timeout,
        )


class Leaders:
    """The leaders of all groups as a job of their own, tied to the whole job.

    Attributes:
        runtime: of the leaders; its rank is the number of the group.
    """

    def __init__(self, job: Runtime, ranks: list[int]) -> None:
        """Connect the leaders, whose `ranks` are those in the job. Collective."""
        self.runtime = job.over(job.channel.of_ranks(ranks), "group", ranks)
        self._tie = _Tie(job.engine, self.runtime.engine)

    def stop(self, timeout_s: float) -> bool:
        """End the leaders' engine, see `runtime.Part`."""
        self._tie.end()
        return bool(self.runtime.engine.stop(timeout_s))


class _Tie(threading.Thread):
    """Makes a failure of one of two engines a failure of both."""

    def __init__(self, *engines: Any) -> None:
        super().__init__(name="codedgrad-tie", daemon=True)
        self._engines = engines
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        """Look at both engines until one fails or `end` is called."""
        while not self._over.wait(_TIE_S):
            if self._pass_on():
                return

    def end(self) -> None:
        """Look a last time: the others must hear of a failure before a goodbye."""
        self._over.set()
        self.join()
        self._pass_on()

    def _pass_on(self) -> bool:
        texts = [e.failure for e in self._engines if e.failed]
        if texts:
            for engine in self._engines:
                engine.fail(texts[0])  # does nothing on the one that has failed
        return bool(texts)
