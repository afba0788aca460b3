"""Queries: what `CodedPredictor` costs, and what it saves where a worker is slow.

    mpirun -n 2 python benchmarks/bench_serving.py --out FILE.json

*calm*: nobody is slow. Queries come to worker 0 one after the other; a plain call of
the model and one of the predictor take turns. The other worker has no queries.

*slow*: worker 0, to which the queries come, is slow in some of them: one in 20 takes 10
times as long (`--factor`). The model's layers sleep, so that workers which share cores
do not slow one another. Without help, with help, and with a stand-in that is always
trusted, from the p90 on. All three meet the same slowness.

Every exact answer is compared with the model's own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from harness import COMM, arguments, say, write
from torch import Tensor, nn

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, DEPTH, BATCH = 512, 12, 32
SLEEP_S, LAYERS = 1.25e-3, 4
PROBABILITY = 0.05


class Sleeping(nn.Module):
    """A layer that takes so many seconds, and no core."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Sleep, and compute a little."""
        time.sleep(SLEEP_S)
        return self.layer(x).tanh()


class Trusted:
    """A stand-in that is never in doubt."""

    threshold = 0.5

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Answer at once."""
        return torch.zeros(len(x), 8), torch.zeros(len(x))


def network() -> nn.Module:
    """Return a network whose pass takes some milliseconds on one core."""
    torch.manual_seed(0)
    layers = [(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(DEPTH)]
    return nn.Sequential(*(layer for pair in layers for layer in pair)).eval()


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, p99 and p99.9 in milliseconds."""
    last = sorted(seconds)
    places = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    return {
        name: round(1e3 * last[min(int(share * len(last)), len(last) - 1)], 3)
        for name, share in places.items()
    }


def timed(action: Callable[[], Any], into: list[float]) -> Any:
    """Call `action`, and note its seconds."""
    begin = time.perf_counter()
    found = action()
    into.append(time.perf_counter() - begin)
    return found


def calm(*, toy: bool) -> dict[str, Any]:
    """Time both, nobody slow."""
    net, count = network(), 30 if toy else 2000
    x = torch.randn(BATCH, WIDTH)
    plain: list[float] = []
    coded: list[float] = []
    with codedgrad.CodedPredictor(net, faults="") as predictor:
        if COMM.rank == 0:
            for i in range(count + 10):
                with torch.no_grad():
                    wanted = timed(lambda: net(x), plain)
                answer = timed(lambda: predictor(x), coded)
                if not torch.equal(answer.value, wanted):
                    raise SystemExit(f"answer {i} is not the model's")
        stats = predictor.stats()
    if COMM.rank != 0:
        return {}
    ratios = sorted(b / a for a, b in zip(plain[10:], coded[10:], strict=True))
    return {
        "queries": count,
        "plain": quantiles(plain[10:]),
        "coded": quantiles(coded[10:]),
        "coded_over_plain": round(
            quantiles(coded[10:])["p50_ms"] / quantiles(plain[10:])["p50_ms"], 4
        ),
        "median_ratio": round(ratios[len(ratios) // 2], 4),
        "asked": stats["asked"],
    }


def slow(factor: float, *, toy: bool) -> dict[str, Any]:
    """Time queries that come to a worker which is slow now and then."""
    torch.manual_seed(0)
    net = nn.Sequential(*(Sleeping() for _ in range(LAYERS)))
    count = 40 if toy else 2000
    x = torch.randn(4, 8)
    with torch.no_grad():
        wanted = net(x)
    at_90 = codedgrad.deadline("p90", doubtful="wait")
    found: dict[str, Any] = {"queries": count, "factor": factor}
    # A fault's step is the number of the worker's pass.
    chosen = torch.rand(count + 200, generator=torch.Generator().manual_seed(1))
    steps = torch.nonzero(chosen < PROBABILITY).flatten().tolist()
    faults = ";".join(f"slow:worker=0,step={s},factor={factor}" for s in steps)
    for name, settings in {
        "alone": {"patience": None},
        "helped": {},
        "stand_in": {"stand_in": Trusted(), "policy": at_90},
    }.items():
        seconds: list[float] = []
        exact = 0
        with codedgrad.CodedPredictor(net, faults=faults, **settings) as predictor:
            if COMM.rank == 0:
                for _ in range(count):
                    answer = timed(lambda: predictor(x), seconds)
                    exact += answer.exact
                    if answer.exact and not torch.equal(answer.value, wanted):
                        raise SystemExit("an answer is not the model's")
            stats = predictor.stats()
        if COMM.rank == 0:
            share = {"exact": exact / count, "asked": stats["asked"] / count}
            found[name] = {**quantiles(seconds), **share}
    return found


def main() -> None:
    """Run both."""
    parser = arguments(str(__doc__))
    parser.add_argument("--factor", type=float, default=10.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    results = {"calm": calm(toy=args.toy), "slow": slow(args.factor, toy=args.toy)}
    say(str(results))
    write(args.out, "bench_serving", results)


if __name__ == "__main__":
    main()
