"""The few collectives that codedgrad uses, and those of MPI; no other file uses mpi4py.

The C++ engine moves gradients by itself, over a channel of its own. Python needs little
else: to find out who runs where, to hand out the first parameters, and to take small
decisions inside a local group. A `Channel` offers just these calls:

    at the start    duplicate, split_by_machine, of_ranks, allgather    they block
                    start_engine, start_transport
    in the job      start_broadcast, start_allgather, start_barrier     `Request`s
    at the end      abort

The calls in the job return at once, because a process that blocks cannot hear that
another worker has failed. Their callers poll `Request.test` and look at the engine
in between.

`MpiChannel` does it by MPI, `codedgrad.job.sockets.channel` by sockets. Importing this
module loads no MPI; `load` does, and must be called before the first `MpiChannel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

from codedgrad.job import mpi_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpi4py import MPI
    from numpy.typing import NDArray


class Library(NamedTuple):
    """Describes the MPI library that runs in this process."""

    text: str  # its own description of itself, one or more lines
    vendor: str
    version: str
    standard: str  # the version of the MPI standard that it follows
    thread_level: int
    thread_multiple: int  # the level at which any thread may call MPI at any time

    @property
    def takes_any_thread(self) -> bool:
        """Whether MPI runs at MPI_THREAD_MULTIPLE, which the engine needs."""
        return self.thread_level >= self.thread_multiple


def load() -> Library:
    """Load and initialise MPI for calls from any thread, and describe it.

    An MPI that the program has initialised before is left at its thread level.

    Raises:
        ImportError, RuntimeError, OSError: mpi4py or its MPI library cannot be loaded.
    """
    import mpi4py

    if not mpi4py.rc.thread_level:
        mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    vendor, version = MPI.get_vendor()
    return Library(
        text=MPI.Get_library_version(),
        vendor=vendor,
        version=".".join(map(str, version)),
        standard=".".join(map(str, MPI.Get_version())),
        thread_level=MPI.Query_thread(),
        thread_multiple=MPI.THREAD_MULTIPLE,
    )


class Request(Protocol):
    """A collective that is under way.

    Its memory may be read or written until it is complete, and no collective can be
    cancelled. So a request lives, and keeps the memory alive, until `test` has returned
    True, even where whoever waited for it has given up.
    """

    def test(self) -> bool:
        """Return whether the collective is complete; this also moves it forward."""


class Channel(Protocol):
    """Some processes that talk to one another, and this process among them.

    All processes of a channel must make the same calls in the same order.

    Attributes:
        rank: the number of this process, 0 to size - 1.
        size: the number of processes.
    """

    rank: int
    size: int

    # ---- at the start; these calls block ----

    def duplicate(self) -> Channel:
        """Return a channel of the same processes that nobody else sends on."""

    def split_by_machine(self) -> Channel:
        """Return a channel of those processes that run on this machine."""

    def of_ranks(self, ranks: Sequence[int]) -> Channel:
        """Return a channel of these ranks, in this order. Collective over them."""

    def start_engine(self, max_tag: int) -> Any:
        """Return a `_engine.Engine` among these processes; it takes the channel over.

        Args:
            max_tag: no message has a larger tag.
        """

    def start_transport(self) -> Any:
        """Return a `_engine.Transport` among these processes.

        It takes the channel over. One thread at a time may call it, and nothing else
        may use the channel.
        """

    def allgather(self, number: int) -> list[int]:
        """Return the number that each process gives, in order of their ranks."""

    def free(self) -> None:
        """Give back what the channel holds. Collective."""

    # ---- in the job; these calls return at once ----

    def start_broadcast(self, data: NDArray[Any], root: int) -> Request:
        """Begin to copy the root's `data` into the `data` of all others."""

    def start_allgather(self, mine: NDArray[Any], every: NDArray[Any]) -> Request:
        """Begin to collect each process's `mine`, in order of ranks, in `every`."""

    def start_barrier(self) -> Request:
        """Begin a barrier: it is complete when all processes have begun it."""

    # ---- beside ----

    def mark_survivor(self) -> bool:
        """Let whoever started this process know that the others outlive its death.

        Returns:
            False if nobody outlives it, because the launcher or the network ends all.
        """

    def unmark_survivor(self, lost: Sequence[int], *, well: bool) -> None:
        """Let it know that this process ends, whether well, and who was lost."""

    def reads_cuda_memory(self) -> bool:
        """Return whether messages may lie in the memory of CUDA devices."""

    def abort(self, status: int) -> None:
        """End this process at once, and with it the job, with this exit status."""


class MpiRequest:
    """A collective of MPI; it keeps itself and its memory alive, see `Request`."""

    _under_way: ClassVar[set[MpiRequest]] = set()

    def __init__(self, request: MPI.Request, *memory: object) -> None:
        self._request = request
        self._memory = memory
        self._under_way.add(self)

    def test(self) -> bool:
        """Return whether the collective is complete; this also moves it forward."""
        if not self._request.Test():
            return False
        self._under_way.discard(self)
        return True


class MpiChannel:
    """A channel over a communicator of MPI; `Channel` says what each call does."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    @classmethod
    def of_job(cls, comm: Any = None) -> MpiChannel:
        """Return the channel of a communicator of mpi4py; of COMM_WORLD if None."""
        from mpi4py import MPI

        return cls(MPI.COMM_WORLD if comm is None else comm)

    @property
    def fortran_handle(self) -> int:
        """The communicator as an integer, the form that the C++ engine takes."""
        return self._comm.py2f()

    # ---- at the start; these calls block ----

    def duplicate(self) -> MpiChannel:
        """Return a channel of the same processes, on a communicator of its own."""
        return MpiChannel(self._comm.Dup())

    def split_by_machine(self) -> MpiChannel:
        """Return a channel of those processes that run on this machine."""
        from mpi4py import MPI

        comm = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        return MpiChannel(cast("MPI.Intracomm", comm))

    def of_ranks(self, ranks: Sequence[int]) -> MpiChannel:
        """Return a channel of these ranks, in this order. Collective over them."""
        # Not Split: in Open MPI the communicators that it makes have no MPI_TAG_UB,
        # which would leave the engine with tags of 15 bits.
        everybody = self._comm.Get_group()
        some = everybody.Incl(ranks)
        comm = self._comm.Create_group(some)
        for group in (some, everybody):
            group.Free()
        return MpiChannel(comm)

    def allgather(self, number: int) -> list[int]:
        """Return the number that each process gives, in order of their ranks."""
        return list(self._comm.allgather(number))

    def free(self) -> None:
        """Give the communicator back to MPI. Collective."""
        self._comm.Free()

    def start_engine(self, max_tag: int) -> Any:
        """Return an engine over this communicator."""
        from codedgrad.job import _engine

        made = _part().transport(self.fortran_handle, max_tag)
        return _engine.Engine.over_foreign(made)

    def start_transport(self) -> Any:
        """Return a transport over this communicator."""
        from codedgrad.job import _engine

        return _engine.foreign_transport(_part().transport(self.fortran_handle))

    # ---- in the job; these calls return at once ----

    def start_broadcast(self, data: NDArray[Any], root: int) -> MpiRequest:
        """Begin to copy the root's `data` into the `data` of all others."""
        return MpiRequest(self._comm.Ibcast(data, root=root), data)

    def start_allgather(self, mine: NDArray[Any], every: NDArray[Any]) -> MpiRequest:
        """Begin to collect each process's `mine`, in order of ranks, in `every`."""
        return MpiRequest(self._comm.Iallgather(mine, every), mine, every)

    def start_barrier(self) -> MpiRequest:
        """Begin a barrier: it is complete when all processes have begun it."""
        return MpiRequest(self._comm.Ibarrier())

    # ---- beside ----

    def mark_survivor(self) -> bool:
        """Return False: MPI ends all processes when one dies."""
        return False

    def unmark_survivor(self, lost: Sequence[int], *, well: bool) -> None:
        """Do nothing."""

    def reads_cuda_memory(self) -> bool:
        """Return whether the MPI library says that it takes it."""
        return bool(_part().mpi_reads_cuda_memory())

    def abort(self, status: int) -> None:
        """End all processes of the job at once, with this exit status."""
        self._comm.Abort(status)


def _part() -> Any:
    from mpi4py import MPI

    return mpi_part.load(MPI.get_vendor()[0])
