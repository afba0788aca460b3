"""Averages, sums, and objects of all workers, for what happens between the steps.

Each function here is a barrier: it returns when every worker has called it, so it waits
for the slowest. For what is averaged in every step, let the loss function return it.
Workers that are lost for good are left out of a reduction. What wants the value of each
ends with an error, on all who are left alike.

What is small travels through the engine in one message, together with a description of
what it is. So workers that reduce other things, other shapes or types are told so, all
of them. What is large follows by MPI, piece by piece.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codedgrad.errors import ConfigError, MismatchError, WorkerError
from codedgrad.job import agreement, objects, reduction
from codedgrad.job.broadcast import broadcast_bytes
from codedgrad.job.runtime import DISAGREE, current
from codedgrad.job.waiting import Waiting

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime

_SMALL_BYTES = 1 << 14  # travels with its description
_PIECE_BYTES = 1 << 24  # of what is large; each worker holds `size` of them
_SENT, _FAILED = b"+", b"!"


def allreduce(value: Any, op: str = "mean") -> Any:
    """Reduce a value over all workers. Collective, and a barrier.

        accuracy = codedgrad.allreduce(correct / total)
        sums = codedgrad.allreduce({"correct": correct, "total": total}, op="sum")

    The sum is formed in the order of the workers, so every worker has the same bits.
    bfloat16 and float16 are added in float32, float32 in float64, and rounded once.
    Integers are exact.

    Args:
        value: a number, a tensor or array of any shape, or a dictionary, list or tuple
            of these, nested at will; None stays None. All workers give the same
            structure, names, shapes and types.
        op: "mean", "sum", "max" or "min". A mean of Python's integers is a float. A
            tensor of integers has no mean, and one of bools neither mean nor sum: they
            would not fit its type.

    Returns:
        The same structure; tensors keep their type and device, and have no gradient.

    Raises:
        ConfigError: `value` or `op` is something else, or an integer overflows.
        MismatchError: structure, shapes, types or `op` differ between workers; the
            error says where.
        WorkerError: a worker failed, or did not come within `timeout_s`.
    """
    job = current()
    problem, leaves = "", reduction.Leaves([])
    try:
        reduction.check_op(op)
        leaves = reduction.leaves_of(value, op)
    except ConfigError as error:
        problem = str(error)
    occasion = "in an allreduce"
    names = [*leaves.describe(), ("op", str(op))]
    every = _exchange(
        job, occasion, "values to reduce", leaves.data(), (names, problem)
    )
    there = [one for one in every if one is not None]
    return leaves.rebuilt(value, reduction.reduced(leaves, there, op))


def allgather_object(value: Any, *, allow_pickle: bool = False) -> list[Any]:
    """Return every worker's object, by rank. Collective, and a barrier.

    Args:
        value: None, a number, text, bytes, tensor, array of numpy, or a list, tuple,
            set or dictionary of these. The objects of the workers may differ in all.
        allow_pickle: send any object by pickle where it is something else. Whoever
            sends a pickled object can run code on the other workers.

    Raises:
        ConfigError: a worker's object holds something else.
        MismatchError: `allow_pickle` differs.
        WorkerError: a worker failed, or did not come within `timeout_s`.
    """
    every = _objects(value, allow_pickle=allow_pickle)
    return [
        objects.decode(bytes(one), allow_pickle=allow_pickle)
        for one in _all_of("to gather objects", every)
    ]


def objects_of_the_present(value: Any) -> list[Any]:
    """Return the objects of those workers that are not lost. Collective."""
    every = _objects(value, allow_pickle=False)
    return [objects.decode(bytes(one)) for one in every if one is not None]


def _objects(value: Any, *, allow_pickle: bool) -> list[bytes | memoryview | None]:
    data, problem = _encoded(value, allow_pickle=allow_pickle)
    names = [("allow_pickle", str(allow_pickle))]
    occasion = "to gather objects"
    subject = "objects to gather"
    return _exchange(current(), occasion, subject, data, (names, problem))


def broadcast_object(
    value: Any = None, root_rank: int = 0, *, allow_pickle: bool = False
) -> Any:
    """Return the root worker's object. Collective, and a barrier.

    Args:
        value: see `allgather_object`; what other workers than the root give is not
            looked at.
        root_rank: the worker whose object is taken.
        allow_pickle: see `allgather_object`.

    Raises:
        ConfigError: `root_rank` is no worker, or the object holds something that only
            pickle can send.
        MismatchError: `root_rank` or `allow_pickle` differs.
        WorkerError: a worker failed, or did not come within `timeout_s`.
    """
    job = current()
    data, problem = b"", ""
    if not 0 <= root_rank < job.size:
        problem = f"root_rank must be 0 to {job.size - 1}, got {root_rank}"
    elif job.rank == root_rank:
        data, problem = _encoded(value, allow_pickle=allow_pickle)
    names = [("root_rank", str(root_rank)), ("allow_pickle", str(allow_pickle))]
    occasion = "to broadcast an object"
    every = _exchange(job, occasion, "object to broadcast", data, (names, problem))
    (root,) = _all_of(occasion, [every[root_rank]], root_rank)
    return objects.decode(bytes(root), allow_pickle=allow_pickle)


def allgather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate every worker's tensor along the first dimension. Collective.

    Args:
        tensor: of shape [n, ...]; n may differ between the workers.

    Returns:
        A tensor of shape [sum of n, ...], in order of the workers, on the same device.

    Raises:
        ConfigError: it is no dense tensor with a dimension.
        MismatchError: types or the other dimensions differ between workers.
        WorkerError: a worker failed, or did not come within `timeout_s`.
    """
    job = current()
    data, problem, names = b"", "", []
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        problem = f"allgather takes a dense tensor, got {_kind(tensor)}"
    elif tensor.dim() == 0:
        problem = "allgather takes a tensor of one dimension or more, got a scalar"
    else:
        data = objects.tensor_bytes(tensor)
        names = [
            ("type", str(tensor.dtype)),
            ("shape", f"(*, {tuple(tensor.shape[1:])})"),
        ]
    occasion = "in an allgather"
    every = _all_of(
        occasion,
        _exchange(job, occasion, "tensors to gather", data, (names, problem)),
    )
    row = tensor.shape[1:].numel() * tensor.dtype.itemsize
    if row == 0:
        first = allreduce(tensor.shape[0], op="sum")
        return tensor.new_empty((first, *tensor.shape[1:]))
    parts = [
        objects.tensor_of(
            bytearray(d), tensor.dtype, [len(d) // row, *tensor.shape[1:]]
        )
        for d in every
    ]
    return torch.cat(parts).to(tensor.device)


def join() -> int:
    """Wait until all workers have called this; return the one that came last.

    For the end of training, where a worker may be late. All must have made the same
    steps. Collective, and a barrier.

    Raises:
        WorkerError: a worker failed, or did not come within `timeout_s`.
        MismatchError: other workers wait for something else.
    """
    return last_of(time.time())


def last_of(came: float) -> int:
    """Return the worker with the latest time. Collective.

    The clocks of machines are good enough for this; all get the same answer.
    """
    blobs = current().gather_from_all(repr(came).encode(), "in join()")
    times = {w: float(one) for w, one in enumerate(blobs) if one is not None}
    return max(times, key=lambda w: (times[w], -w))


def _all_of(
    occasion: str, every: list[bytes | memoryview | None], first: int = 0
) -> list[bytes | memoryview]:
    """Return what the workers gave, if all did; `first` is the first one's rank.

    Raises:
        WorkerError: one is lost.
    """
    lost = [first + i for i, one in enumerate(every) if one is None]
    if lost:
        raise WorkerError(
            f"worker(s) {lost} are lost, and what they would have given {occasion} is "
            f"wanted; leave such calls out once workers may be lost (docs/faults.md)"
        )
    return [one for one in every if one is not None]


def _kind(value: Any) -> str:
    return type(value).__qualname__


def _encoded(value: Any, *, allow_pickle: bool) -> tuple[bytes, str]:
    """Return an object as bytes, or no bytes and what is wrong with it."""
    try:
        return objects.encode(value, allow_pickle=allow_pickle), ""
    except ConfigError as error:
        return b"", str(error)


def _exchange(
    job: Runtime,
    occasion: str,
    subject: str,
    data: bytes,
    described: tuple[list[tuple[str, str]], str],
) -> list[bytes | memoryview | None]:
    """Return the bytes of every worker, by rank, if all have described them alike.

    Of a worker that is lost there may be None.

    Args:
        job: whose workers take part.
        occasion: completes the sentence "worker 0 waits ...".
        subject: what is exchanged, for the message.
        data: of this worker.
        described: (name, value) pairs that must be the same everywhere, and what is
            wrong with this worker's data, or "".

    Raises:
        ConfigError: something is wrong with a worker's data; raised on all of them.
        MismatchError: the descriptions differ.
    """
    names, problem = described
    head = objects.encode([agreement.digest_of(names), len(data), problem])
    small = data if len(data) <= _SMALL_BYTES else b""
    mine = len(head).to_bytes(8, "little") + head + small
    heads: dict[int, Any] = {}
    bodies: list[bytes | memoryview | None] = []
    for worker, blob in enumerate(job.gather_from_all(mine, occasion)):
        if blob is None:
            bodies.append(None)
            continue
        end = 8 + int.from_bytes(blob[:8], "little")
        heads[worker] = objects.decode(blob[8:end])
        bodies.append(blob[end:])
    wrong = [f"{job.unit} {w}: {h[2]}" for w, h in heads.items() if h[2]]
    if wrong:
        alike = len({head[2] for head in heads.values()}) == 1
        error = ConfigError(problem if alike else "; ".join(wrong))
        agreement.together(job)
        raise error
    if len({h[0] for h in heads.values()}) > 1:
        agreement.check_agreement(subject, names)
        raise MismatchError(f"{DISAGREE}{subject}")
    sizes = {worker: h[1] for worker, h in heads.items()}
    if max(sizes.values()) <= _SMALL_BYTES:
        return bodies
    found = _large(job, occasion, data, sizes)
    return [found.get(worker) for worker in range(job.size)]


def _large(
    job: Runtime, occasion: str, data: bytes, sizes: dict[int, int]
) -> dict[int, bytes | memoryview]:
    """Collect large data by MPI, a piece of every worker's at a time.

    `sizes` are the bytes of each worker's, by rank, of those who take part.
    """
    mine = np.frombuffer(data, np.uint8)
    most = max(sizes.values())
    if sum(map(bool, sizes.values())) == 1:  # one worker has something: a broadcast
        root = next(worker for worker, size in sizes.items() if size)
        flat = torch.zeros(most, dtype=torch.uint8)
        if job.rank == root:
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        broadcast_bytes(job, flat, root, occasion)
        empty = b""
        return {w: flat.numpy().data if w == root else empty for w in sizes}
    whole = {worker: np.empty(size, np.uint8) for worker, size in sizes.items()}
    waiting = Waiting(job, occasion, quiet_s=5.0)
    channel, ranks = job.present()
    others = [w for w in ranks if w != job.rank]
    for begin in range(0, most, _PIECE_BYTES):
        piece = np.zeros(min(_PIECE_BYTES, most - begin), np.uint8)
        part = mine[begin : begin + piece.size]
        piece[: part.size] = part
        every = np.empty((len(ranks), piece.size), np.uint8)
        request = channel.start_allgather(piece, every)
        nap_s = 1e-5
        while not request.test():
            if job.engine.failed:
                raise job.error()
            waiting.tick(others)
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, 1e-3)
        for place, worker in enumerate(ranks):
            count = min(piece.size, max(0, sizes[worker] - begin))
            whole[worker][begin : begin + count] = every[place, :count]
    return {worker: array.data for worker, array in whole.items()}
