"""One exchange of a gradient: codedgrad, MPI_Allreduce, Horovod, torch Gloo.

    mpirun -n 4 python benchmarks/bench_exchange.py --out FILE.json

Each fills the same slots: the gradient lies in a torch tensor; when the call returns,
the sum over the workers lies in one. Straggler-free, nothing overlaps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from harness import COMM, arguments, interleaved, say, summary, write

import codedgrad
from codedgrad import codes, runtime
from codedgrad.engine import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"4 KB": 1 << 10, "160 KB": 40 << 10, "4 MB": 1 << 20, "40 MB": 10 << 20}


class Flat(NamedTuple):
    """The part of a Payload that an exchange asks for."""

    dtype: torch.dtype
    bucket_starts: list[int]
    wire: str = "float32"
    narrow_buckets: int = 0
    device: torch.device = torch.device("cpu")
    gradients: int = 0


def codedgrad_sum(source: torch.Tensor) -> Callable[[], torch.Tensor]:
    """An exchange as CodedGradient makes it: one copy in, none out."""
    here = runtime.current()
    each = min(source.numel(), 1 << 20)
    starts = [*range(0, source.numel(), each), source.numel()]
    code = codes.uncoded(here.size)
    exchange = Exchange(here, code, Flat(source.dtype, starts), window=16)
    codedgrad.barrier()
    row = exchange.row_of(here.rank, 0)
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
        return total

    return run


def peers(source: torch.Tensor, size: str) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared with; Horovod only where it is installed."""
    out = torch.empty_like(source)

    def mpi() -> torch.Tensor:
        COMM.Allreduce(source.numpy(), out.numpy())
        return out

    def gloo() -> torch.Tensor:
        out.copy_(source)
        torch.distributed.all_reduce(out)
        return out

    found: dict[str, Callable[[], torch.Tensor]] = {"mpi": mpi, "gloo": gloo}
    try:
        import horovod.torch as hvd
    except ImportError:
        say("Horovod is not installed: left out")
        return found
    hvd.init()
    found["horovod"] = lambda: hvd.allreduce(source, op=hvd.Sum, name=f"bench {size}")
    return found


def main() -> None:
    """Measure every size."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    torch.distributed.init_process_group("gloo", rank=COMM.rank, world_size=COMM.size)
    results: dict[str, Any] = {}
    for name, count in SIZES.items():
        source = torch.full((count,), float(COMM.rank + 1))
        actions = {"codedgrad": codedgrad_sum(source), **peers(source, name)}
        want = COMM.size * (COMM.size + 1) / 2
        for method, action in actions.items():
            got = action()
            if not bool((got == want).all()):
                raise SystemExit(f"{method} gave a wrong sum at {name}")
        rounds = 5 if args.toy else max(20, min(300, (200 << 20) // count))
        seconds = interleaved(actions, rounds, warm_up=3)
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
    write(args.out, "bench_exchange", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
