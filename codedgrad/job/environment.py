"""Environment variables. They are read here and nowhere else.

None of them silently beats an argument: CODEDGRAD_FAULTS is used where no `faults`
argument was given, CODEDGRAD_GPU_* have none, the others come from launchers.
"""

from __future__ import annotations

import os

from codedgrad.errors import ConfigError

# Launcher variables that say how many workers were started, first match wins.
_WORLD_SIZES = (
    ("HOROVOD_SIZE", "horovodrun --gloo"),
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_SIZE", "MPICH's mpirun"),
)


def faults_text() -> str:
    """CODEDGRAD_FAULTS: slowness to inject, see `codedgrad.faults`; "" if unset."""
    return os.environ.get("CODEDGRAD_FAULTS", "")


def gpu_direct() -> bool:
    """CODEDGRAD_GPU_DIRECT=0: MPI does not get a GPU's memory, even if it takes it."""
    return _switch("CODEDGRAD_GPU_DIRECT") != "0"


def gpu_decode() -> str:
    """CODEDGRAD_GPU_DECODE: "0" sums on CPUs, "1" on GPUs; "": where it is faster."""
    return _switch("CODEDGRAD_GPU_DECODE")


def _switch(name: str) -> str:
    """Of a variable that is 0, 1 or unset.

    Raises:
        ConfigError: it is something else.
    """
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{name} must be 0, 1 or unset, got {value!r}")
    return value


def launcher_world() -> tuple[str, int] | None:
    """(launcher, workers it started), or None when there is no sign of one."""
    names = list(_WORLD_SIZES)
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        names.append(("SLURM_NTASKS", "srun"))
    for variable, name in names:
        value = os.environ.get(variable, "")
        if value.isdigit():
            return name, int(value)
    return None


def export_torchrun_variables(values: dict[str, object]) -> None:
    """Set RANK, WORLD_SIZE, ... for libraries that look for them, unless set."""
    for name, value in values.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
