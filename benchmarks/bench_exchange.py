"""One exchange of a gradient: codedgrad, bare MPI calls, MPI_Allreduce, Horovod, Gloo.

    mpirun -n 4 python benchmarks/bench_exchange.py --out FILE.json

Each fills the same slots: the gradient lies in a torch tensor, and when the call
returns the sum over the workers lies in one. No worker is slow, and nothing overlaps.
`codedgrad_in_place` has its gradient in the row already, where a backward's encoder
writes it. `bare` is the same pattern of messages without an engine (bare_exchange.py).

Gradients tell worker, position and step, and sums are compared with the truth before
and after the timing, so that a slice in a wrong place or of another step is found out.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from bare_exchange import bare_sum
from codedgrad.settings import ExchangeSettings
from harness import (
    COMM,
    arguments,
    device_of,
    interleaved,
    say,
    start_torch,
    summary,
    synchronize,
    write,
)
from known_gradients import STEPS, gradient

import codedgrad
from codedgrad import codes
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    Sum = Callable[[], torch.Tensor]

SIZES = {"4 KB": 1 << 10, "160 KB": 40 << 10, "4 MB": 1 << 20, "40 MB": 10 << 20}


class Flat(NamedTuple):
    """A flat gradient, as far as an exchange asks for a layout."""

    dtype: torch.dtype
    bucket_starts: list[int]
    wire: str = "float32"
    narrow_buckets: int = 0
    device: torch.device = torch.device("cpu")
    gradients: int = 0


class Steps:
    """The gradients of this worker, step by step, in a tensor that is reused."""

    def __init__(self, count: int, device: torch.device) -> None:
        """Compute all gradients and their sums."""
        every = [
            [gradient(worker, step, count) for worker in range(COMM.size)]
            for step in range(STEPS)
        ]
        self._mine = [each[COMM.rank].to(device) for each in every]
        self._sums = [torch.stack(each).sum(0).to(device) for each in every]
        self.source = self._mine[0].clone()
        self._step = 0

    def next(self) -> None:
        """Go on to the next step."""
        self._step = (self._step + 1) % STEPS
        self.source.copy_(self._mine[self._step])

    def check(self, name: str, action: Sum) -> None:
        """Compare the sums of all steps with the truth."""
        for _ in range(STEPS):
            self.next()
            if not torch.equal(action(), self._sums[self._step]):
                raise SystemExit(f"{name} gave a wrong sum")


class CodedgradSum:
    """An exchange as CodedGradient makes it, in this job or in another one.

    It copies once on the way in, and on a CPU not at all on the way out.
    """

    def __init__(
        self, source: torch.Tensor, job: runtime.Runtime | None = None
    ) -> None:
        """Open an exchange, on all workers together."""
        job = job or runtime.current()
        each = min(source.numel(), 1 << 20)
        starts = [*range(0, source.numel(), each), source.numel()]
        layout = Flat(source.dtype, starts)
        code = codes.uncoded(job.size)
        self._source = source
        self._exchange = EngineExchange(job, code, layout, ExchangeSettings())
        codedgrad.barrier()
        self._row = self._exchange.row_of(job.rank, 0)
        self._step = 0

    def __call__(self, *, copies: bool = True) -> torch.Tensor:
        """Return the sum of the workers' gradients."""
        step = self._step
        self._exchange.begin(step)
        data = self._exchange.row_buffer()
        if copies:
            data.tensor.copy_(self._source)
        self._exchange.post(step, self._row, data)
        self._exchange.wait_all(step)
        total, _ = self._exchange.take(step)
        self._step += 1
        return total.to(self._source.device)

    def in_place(self) -> torch.Tensor:
        """Return the sum of what the rows' memory holds."""
        return self(copies=False)


def peers(source: torch.Tensor, size: str, *, horovod: bool) -> dict[str, Sum]:
    """Return the exchanges to compare with; Horovod only where it is installed."""
    out = torch.empty_like(source)
    host = torch.empty_like(source, device="cpu")

    def mpi() -> torch.Tensor:
        COMM.Allreduce(source.cpu().numpy(), host.numpy())
        return host.to(source.device)

    def torch_sum() -> torch.Tensor:
        out.copy_(source)
        torch.distributed.all_reduce(out)
        return out

    found: dict[str, Sum] = {"mpi": mpi, torch.distributed.get_backend(): torch_sum}
    if not horovod:
        return found
    try:
        import horovod.torch as hvd
    except ImportError:
        say("Horovod is not installed: left out")
        return found
    hvd.init()
    found["horovod"] = lambda: hvd.allreduce(source, op=hvd.Sum, name=f"bench {size}")
    return found


def rounds_of(count: int, *, toy: bool) -> tuple[int, int]:
    """Return how often each exchange has its turn, and how often it is timed in it.

    A method whose threads have been idle needs a while until they are on their cores.
    """
    if toy:
        return 3, 2
    in_a_row = max(2, min(20, (8 << 20) // count))
    return max(20, min(300, (200 << 20) // count)) // in_a_row, in_a_row


def measure(
    sizes: dict[str, int], device: torch.device, *, toy: bool, horovod: bool
) -> dict[str, Any]:
    """Return {size: {method: summary}}; `sizes` are elements by name."""
    results: dict[str, Any] = {}
    for name, count in list(sizes.items())[: -1 if toy else None]:
        steps = Steps(count, device)
        ours = CodedgradSum(steps.source)
        actions: dict[str, Sum] = {"codedgrad": ours}
        if device.type == "cpu":
            actions["bare"] = bare_sum(steps.source)
        actions |= peers(steps.source, name, horovod=horovod)
        for method, action in actions.items():
            steps.check(f"{method} at {name}, before the timing,", action)

        def whole(action: Sum) -> Callable[[], None]:
            def run() -> None:
                action()
                synchronize(device)

            return run

        rounds, in_a_row = rounds_of(count, toy=toy)
        timed = {method: whole(action) for method, action in actions.items()}
        timed["codedgrad_in_place"] = whole(ours.in_place)
        seconds = interleaved(timed, rounds, warm_up=1, in_a_row=in_a_row)
        for method, action in actions.items():
            steps.check(f"{method} at {name}, after the timing,", action)
        rows = {method: summary(s) for method, s in seconds.items()}
        median = rows["codedgrad"]["median_ms"]
        for row in rows.values():
            row["codedgrad_over_this"] = round(median / row["median_ms"], 3)
        results[name] = rows
        shown = "  ".join(
            f"{m} {r['median_ms']:.3f} ms ({r['codedgrad_over_this']:.2f})"
            for m, r in rows.items()
        )
        say(f"{name:>7}: {shown}")
    return results


def main() -> None:
    """Measure every size."""
    parser = arguments(str(__doc__))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--horovod", action=argparse.BooleanOptionalAction, default=True
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    device = device_of(args.device)
    start_torch(device)
    results = measure(SIZES, device, toy=args.toy, horovod=args.horovod)
    write(args.out, "bench_exchange", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
