"""CPU kernels against copying and torch, and decoding weights of large codes.

python benchmarks/bench_kernels.py --out FILE.json
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import arguments, interleaved, say, write

from codedgrad import codes, ops

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"160 KB": 160 << 10, "4 MB": 4 << 20, "40 MB": 40 << 20}
REST_S = 0.02  # after an operation torch's threads spin for work, on our cores
BYTES_PER_TIMING = 16 << 20  # small sizes are repeated, since clocks are coarse


def sum_actions(x: list[torch.Tensor]) -> dict[str, Callable[[], None]]:
    """Return the actions weighted_sum, its rivals, and copying."""
    weights = [0.5 + j for j in range(len(x))]
    out = torch.empty_like(x[0])

    def expression() -> None:
        total = weights[0] * x[0]
        for w, y in zip(weights[1:], x[1:], strict=True):
            total = total + w * y

    def in_place() -> None:
        torch.mul(x[0], weights[0], out=out)
        for w, y in zip(weights[1:], x[1:], strict=True):
            out.add_(y, alpha=w)

    return {
        "ours": lambda: ops.weighted_sum_out(x, weights, out),
        "torch": expression,
        "torch_in_place": in_place,
        **copies(x[0], out),
    }


def gram_actions(x: list[torch.Tensor]) -> dict[str, Callable[[], None]]:
    """Return the actions gram, two torch expressions for it, and copying."""

    def stacked() -> None:
        s = torch.stack(x)
        s @ s.T

    def dots() -> None:
        for i in range(len(x)):
            for j in range(i, len(x)):
                torch.dot(x[i], x[j])

    actions = {"ours": lambda: _done(ops.gram(x)), "torch": stacked}
    return {**actions, "torch_dots": dots, **copies(x[0], torch.empty_like(x[0]))}


def copies(x: torch.Tensor, out: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Return the machine's ways to copy, of which the fastest counts."""
    source, target = x.view(torch.uint8).numpy(), out.view(torch.uint8).numpy()
    return {
        "copy_torch": lambda: _done(out.copy_(x)),
        "copy_numpy": lambda: np.copyto(target, source),
    }


def _done(_result: torch.Tensor) -> None:
    pass


def measure(
    actions: dict[str, Callable[[], None]], size: int, moved: int, rounds: int
) -> dict[str, float]:
    """Return medians in GB/s and ratios.

    An action moves `moved` bytes; one of its inputs has `size` bytes.
    """
    repeat = max(1, BYTES_PER_TIMING // moved)

    def repeated(action: Callable[[], None]) -> Callable[[], None]:
        return lambda: [action() for _ in range(repeat)] and None

    rest_s = REST_S if torch.get_num_threads() > 1 else 0.0
    turns = {n: repeated(a) for n, a in actions.items()}
    seconds = interleaved(turns, rounds, 2, rest_s)
    medians = {n: statistics.median(s) / repeat for n, s in seconds.items()}
    copy = 2 * size / min(v for n, v in medians.items() if n.startswith("copy"))
    row = {
        "gb_s": round(moved / medians["ours"] / 1e9, 2),
        "copy_gb_s": round(copy / 1e9, 2),
        "share_of_copy": round(moved / medians["ours"] / copy, 3),
    }
    for name, spent in medians.items():
        if name.startswith("torch"):
            row[f"over_{name}"] = round(spent / medians["ours"], 2)
    return row


def kernels(toy: bool) -> list[dict[str, Any]]:
    """Measure every kernel, type, size, number of inputs and of threads."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, size in list(SIZES.items())[: 2 if toy else None]:
            for k in (2, 8) if toy else (2, 4, 8):
                count = size // dtype.itemsize // (16 if toy else 1)
                x = [torch.randn(count).to(dtype) for _ in range(k)]
                bytes_each = count * dtype.itemsize
                wanted = [("weighted_sum", sum_actions(x), k + 1)]
                if dtype == torch.float32:
                    wanted.append(("gram", gram_actions(x), k))
                for op, actions, streams in wanted:
                    for threads in (1, 2):
                        torch.set_num_threads(threads)
                        found = measure(
                            actions, bytes_each, streams * bytes_each, 1 if toy else 15
                        )
                        row = {"op": op, "dtype": str(dtype).removeprefix("torch.")}
                        row |= {"size": name, "inputs": k, "threads": threads}
                        rows.append(row | found)
                        say("  ".join(f"{a} {b}" for a, b in rows[-1].items()))
    torch.set_num_threads(1)
    return rows


def decode_times(code: codes.Code, arrivals: list[np.ndarray]) -> dict[str, float]:
    """Return milliseconds of the first call, of new arrival sets and of known ones."""
    first, *others = arrivals
    spent: list[list[float]] = [[], [], []]
    for kind, masks in enumerate(([first], others, others)):
        for mask in masks:
            begin = time.perf_counter()
            code.decode(mask)
            spent[kind].append((time.perf_counter() - begin) * 1e3)
    return {
        "first_ms": round(spent[0][0], 3),
        "new_median_ms": round(statistics.median(spent[1]), 4),
        "new_longest_ms": round(max(spent[1]), 4),
        "cached_median_ms": round(statistics.median(spent[2]), 4),
    }


def decoding(toy: bool) -> dict[str, dict[str, float]]:
    """Time the decoding weights of large codes."""
    random = np.random.default_rng(0)
    sets = 5 if toy else 200
    results = {}
    cyclic = codes.cyclic(256, stragglers=27)
    arrivals = [np.ones(256, bool) for _ in range(sets)]
    for mask in arrivals:
        mask[random.choice(256, 27, replace=False)] = False
    row = decode_times(cyclic, arrivals)
    begin = time.perf_counter()
    cyclic.decode_reference(arrivals[0])
    row["least_squares_ms"] = round((time.perf_counter() - begin) * 1e3, 1)
    results[cyclic.describe()] = row
    for code in (codes.spread(4096), codes.fractional(4096)):
        required = np.zeros(code.row_count, bool)
        required[[code.row_index(w, 0) for w in range(code.workers)]] = True
        arrivals = [random.random(code.row_count) < 0.9 for _ in range(sets)]
        arrivals = [a if i % 2 else a & required for i, a in enumerate(arrivals)]
        results[code.describe()] = decode_times(code, arrivals)
    for name, row in results.items():
        say(f"{name}: {row}")
    return results


def main() -> None:
    """Measure everything."""
    args = arguments(str(__doc__)).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    decode = decoding(args.toy)
    results = {"decode": decode, "kernels": kernels(args.toy)}
    write(args.out, "bench_kernels", results)


if __name__ == "__main__":
    main()
