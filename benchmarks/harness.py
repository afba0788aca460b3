"""What all benchmarks share: the environment of a number, interleaving, JSON files."""

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
    """Return a parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--toy", action="store_true", help="seconds, not minutes")
    parser.add_argument("--out", type=Path, help="JSON file to write (worker 0)")
    return parser


def device_of(name: str) -> torch.device:
    """Return this worker's device; a machine's workers take its GPUs in turn."""
    if name != "cuda":
        return torch.device(name)
    node = COMM.Split_type(MPI.COMM_TYPE_SHARED)
    local = node.rank
    node.Free()
    device = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_torch(device: torch.device, backend: str | None = None) -> str:
    """Start torch.distributed after codedgrad.init(), and return its backend's name.

    Args:
        device: this worker's; on a GPU the backend is NCCL.
        backend: another one.
    """
    # A host's own name may not lead to it, so one machine goes by the loopback.
    one_machine = codedgrad.local_size() == codedgrad.size()
    first = "127.0.0.1" if one_machine else COMM.bcast(socket.gethostname())
    os.environ.setdefault("MASTER_ADDR", first)
    with socket.create_server(("", 0)) as free:  # other benchmarks may run beside
        port = COMM.bcast(free.getsockname()[1])
    os.environ.setdefault("MASTER_PORT", str(port))
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    torch.distributed.init_process_group(backend, rank=COMM.rank, world_size=COMM.size)
    return backend


def environment() -> dict[str, Any]:
    """Return where the numbers come from: machine, versions, commit and date."""
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
    """Time every action once a round, on all workers together.

    Args:
        actions: functions by name; they take turns, and every round begins with the
            next one.
        rounds: number of rounds that are timed.
        warm_up: number of rounds before these.
        rest_s: seconds to sleep before each action, if positive. Meanwhile threads of
            the action before stop looking for work. The action is then done once
            untimed, which brings its own threads to their cores.

    Returns:
        The slowest worker's seconds by action and round, known on every worker.
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
    """Return median and quartiles in milliseconds, rounded to a microsecond."""
    ordered = sorted(seconds)
    n = len(ordered)
    return {
        "median_ms": round(statistics.median(ordered) * 1e3, 3),
        "p25_ms": round(ordered[n // 4] * 1e3, 3),
        "p75_ms": round(ordered[(3 * n) // 4] * 1e3, 3),
        "rounds": n,
    }


def write(path: Path | None, name: str, results: Any) -> None:
    """Write `results` with their environment; only worker 0 does it."""
    if COMM.rank != 0 or path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {"benchmark": name, "environment": environment(), "results": results}
    path.write_text(json.dumps(text, indent=1) + "\n")


def say(text: str) -> None:
    """Print on worker 0."""
    if COMM.rank == 0:
        print(text, flush=True)
