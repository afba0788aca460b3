"""Environment variables. They are read here and nowhere else.

None of them silently beats an argument: CODEDGRAD_FAULTS is used where no `faults`
argument was given, the others come from launchers.
"""

from __future__ import annotations

import os

# Launcher variables that say how many workers were started, first match wins.
_WORLD_SIZES = (
    ("HOROVOD_SIZE", "horovodrun --gloo"),
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_SIZE", "MPICH's mpirun"),
)


def faults_text() -> str:
    """CODEDGRAD_FAULTS: slowness to inject, see `codedgrad.faults`; "" if unset."""
    return os.environ.get("CODEDGRAD_FAULTS", "")


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
