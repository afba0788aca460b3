"""One exchange of a gradient: codedgrad, MPI_Allreduce, Horovod, torch Gloo or NCCL.

    mpirun -n 4 python benchmarks/bench_exchange.py --out FILE.json

Each fills the same slots: the gradient lies in a torch tensor, and when the call
returns the sum over the workers lies in one. No worker is slow, and nothing overlaps.

Gradients tell worker, position and step, and sums are compared with the truth before
and after the timing, so that a slice in a wrong place or of another step is found out.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
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


def codedgrad_sum(source: torch.Tensor, job: runtime.Runtime | None = None) -> Sum:
    """Return an exchange as CodedGradient makes it, in this job or in another one.

    It copies once on the way in, and on a CPU not at all on the way out.
    """
    job = job or runtime.current()
    each = min(source.numel(), 1 << 20)
    starts = [*range(0, source.numel(), each), source.numel()]
    code = codes.uncoded(job.size)
    layout = Flat(source.dtype, starts)
    exchange = EngineExchange(job, code, layout, ExchangeSettings())
    codedgrad.barrier()
    row = exchange.row_of(job.rank, 0)
    step = 0

    def run() -> torch.Tensor:
        nonlocal step
        exchange.begin(step)
        data = exchange.row_buffer()
        data.tensor.copy_(source)
        exchange.post(step, row, data)
        exchange.wait_all(step)
        total, _ = exchange.take(step)
        step += 1
        return total.to(source.device)

    return run


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


def measure(
    sizes: dict[str, int], device: torch.device, *, toy: bool, horovod: bool
) -> dict[str, Any]:
    """Return {size: {method: summary}}; `sizes` are elements by name."""
    results: dict[str, Any] = {}
    for name, count in list(sizes.items())[: -1 if toy else None]:
        steps = Steps(count, device)
        actions = {
            "codedgrad": codedgrad_sum(steps.source),
            **peers(steps.source, name, horovod=horovod),
        }
        for method, action in actions.items():
            steps.check(f"{method} at {name}, before the timing,", action)

        def whole(action: Sum) -> Callable[[], None]:
            def run() -> None:
                action()
                synchronize(device)

            return run

        rounds = 5 if toy else max(20, min(300, (200 << 20) // count))
        timed = {method: whole(action) for method, action in actions.items()}
        seconds = interleaved(timed, rounds, warm_up=3)
        for method, action in actions.items():
            steps.check(f"{method} at {name}, after the timing,", action)
        rows = {method: summary(s) for method, s in seconds.items()}
        ours = rows["codedgrad"]["median_ms"]
        for row in rows.values():
            row["codedgrad_over_this"] = round(ours / row["median_ms"], 3)
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
