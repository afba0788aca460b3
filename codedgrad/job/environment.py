"""Environment variables. They are read in this file and nowhere else.

No variable beats an argument in silence: CODEDGRAD_FAULTS is used where no `faults`
argument was given, CODEDGRAD_GPU_* and CODEDGRAD_ADDRESS have no argument, and the
others belong to launchers and to torch.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Launcher variables that say how many workers were started, first match wins.
_WORLD_SIZES = (
    ("HOROVOD_SIZE", "horovodrun --gloo"),
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_SIZE", "MPICH's mpirun"),
)
# By these a process knows that a launcher has started it; the second line is what a
# user may have set by hand.
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "HYDRA_", "PRTE_", "HOROVOD_")
_USERS = ("OMPI_ALLOW", "PRTE_ALLOW", "OMPI_MCA")


def faults_text() -> str:
    """Return CODEDGRAD_FAULTS, the slowness to inject; "" if it is unset.

    `codedgrad.faults` describes its grammar.
    """
    return os.environ.get("CODEDGRAD_FAULTS", "")


def gpu_direct() -> bool:
    """Return whether MPI may be given a GPU's memory, if it takes that.

    CODEDGRAD_GPU_DIRECT=0 forbids it.

    Raises:
        ConfigError: the variable is not 0, 1 or unset.
    """
    return _switch("CODEDGRAD_GPU_DIRECT") != "0"


def gpu_decode() -> str:
    """Return CODEDGRAD_GPU_DECODE: where sums of rows on a GPU are formed.

    Returns:
        "0" on CPUs, "1" on GPUs, "" where it is faster.

    Raises:
        ConfigError: the variable is not 0, 1 or unset.
    """
    return _switch("CODEDGRAD_GPU_DECODE")


def address() -> str:
    """Return CODEDGRAD_ADDRESS, at which other machines reach this one; "" if unset.

    Local groups of a job on several machines need it where the address that the machine
    finds by itself is none that the others can reach. It is an address or a host name.
    """
    return os.environ.get("CODEDGRAD_ADDRESS", "")


@contextmanager
def gloo_interface(name: str | None) -> Iterator[None]:
    """Let torch's Gloo use this network interface, unless the user has named one."""
    variable = "GLOO_SOCKET_IFNAME"
    if name is None or variable in os.environ:
        yield
        return
    os.environ[variable] = name
    try:
        yield
    finally:
        os.environ.pop(variable, None)


def _switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{name} must be 0, 1 or unset, got {value!r}")
    return value


def launcher_world() -> tuple[str, int] | None:
    """Return (launcher, workers it started), or None if there is no sign of one."""
    names = list(_WORLD_SIZES)
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        names.append(("SLURM_NTASKS", "srun"))
    for variable, name in names:
        value = os.environ.get(variable, "")
        if value.isdigit():
            return name, int(value)
    return None


def without_launcher() -> dict[str, str]:
    """Return the environment of a process that no launcher has started.

    With a launcher's variables, a process that this one starts would look like one of
    the launcher's workers.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHERS) or name.startswith(_USERS)
    }


def export_torchrun_variables(values: dict[str, object]) -> None:
    """Set RANK, WORLD_SIZE, ... for libraries that look for them, unless they are set.

    Args:
        values: by name; those that are None are left out.
    """
    for name, value in values.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
