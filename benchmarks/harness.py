"""What all benchmarks share: the environment of a number, interleaving, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mpi4py import MPI

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMM = MPI.COMM_WORLD


def arguments(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--toy", action="store_true", help="seconds, not minutes")
    parser.add_argument("--out", type=Path, help="JSON file to write (worker 0)")
    return parser


def device_of(name: str) -> torch.device:
    """This worker's device: its machine's GPUs are dealt out in turn."""
    if name != "cuda":
        return torch.device(name)
    node = COMM.Split_type(MPI.COMM_TYPE_SHARED)
    local = node.rank
    node.Free()
    found = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(found)
    return found


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_torch(device: torch.device) -> str:
    """torch.distributed for all workers, after codedgrad.init(); its backend's name."""
    # On several machines nobody has told torch yet where worker 0 is.
    os.environ.setdefault("MASTER_ADDR", COMM.bcast(socket.gethostname()))
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=COMM.rank, world_size=COMM.size)
    return backend


def environment() -> dict[str, Any]:
    """Where the numbers come from."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        named = [line for line in lines if "model name" in line]
        model = named[0].split(":", 1)[1].strip() if named else model
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "workers": COMM.size,
        "cores": os.cpu_count(),
        "cpu": model,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads_per_worker": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mpi": " ".join(
            MPI.Get_library_version().splitlines()[0].split(",")[0].split()
        ),
        "codedgrad": codedgrad.__version__,
        "commit": commit or None,
        "date": time.strftime("%Y-%m-%d"),
    }


def interleaved(
    actions: dict[str, Callable[[], None]],
    rounds: int,
    warm_up: int,
    rest_s: float = 0.0,
) -> dict[str, list[float]]:
    """Time every action once a round, in turning order, all workers together.

    `rest_s`: before each, sleep, in which threads of the one before stop looking for
    work, and do it once untimed, which brings its own threads to their cores.

    Returns:
        Seconds by action and round, the slowest worker's, known on every worker.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for turn in range(warm_up + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if rest_s > 0:
                time.sleep(rest_s)
                actions[name]()
            COMM.Barrier()
            begin = time.perf_counter()
            actions[name]()
            spent = time.perf_counter() - begin
            if turn >= warm_up:
                seconds[name].append(spent)
    return {n: COMM.allreduce(v, op=_MAX_EACH) for n, v in seconds.items()}


def _max_each(a: list[float], b: list[float], _type: Any = None) -> list[float]:
    return [max(x, y) for x, y in zip(a, b, strict=True)]


_MAX_EACH = MPI.Op.Create(_max_each, commute=True)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, rounded to a microsecond."""
    ordered = sorted(seconds)
    n = len(ordered)
    return {
        "median_ms": round(statistics.median(ordered) * 1e3, 3),
        "p25_ms": round(ordered[n // 4] * 1e3, 3),
        "p75_ms": round(ordered[(3 * n) // 4] * 1e3, 3),
        "rounds": n,
    }


def write(path: Path | None, name: str, results: Any) -> None:
    """Worker 0 writes `results` with their environment."""
    if COMM.rank != 0 or path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {"benchmark": name, "environment": environment(), "results": results}
    path.write_text(json.dumps(text, indent=1) + "\n")


def say(text: str) -> None:
    """Print on worker 0."""
    if COMM.rank == 0:
        print(text, flush=True)
