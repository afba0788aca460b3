"""Environment variables: what launchers set, and switches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from codedgrad.errors import ConfigError
from codedgrad.job import environment

LAUNCHERS = ("OMPI_", "PMI", "MV2_", "SLURM_", "HOROVOD_", "TORCHELASTIC_")
OTHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS) or name in OTHERS:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, ("Open MPI's mpirun", 3)),
        ({"PMI_SIZE": "2"}, ("MPICH's mpirun", 2)),
        ({"PMI_SIZE": "many"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # an allocation, but srun has started nothing
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"},
            ("srun", 4),
        ),
        ({"HOROVOD_SIZE": "2", "PMI_SIZE": "5"}, ("horovodrun --gloo", 2)),
    ],
)
def test_which_launcher(
    variables: dict[str, str],
    found: tuple[str, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.launcher_world() == found


def test_an_environment_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_MCA_btl": "self", "CODEDGRAD_X": "1"}
    dropped = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE", "HOROVOD_SIZE")
    for name in (*kept, *dropped):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMPI_MCA_btl", "self")
    left = environment.without_launcher()
    assert left.items() >= kept.items()
    assert not left.keys() & set(dropped)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "RANK": "1"}
DEEPSPEED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({**TORCHRUN, "WORLD_SIZE": "4"}, "torchrun (or accelerate launch)"),
        ({"GROUP_RANK": "0", "RANK": "3", "WORLD_SIZE": "4"}, "torchrun"),
        (DEEPSPEED, "a launcher that sets RANK"),
        ({"WORLD_SIZE": "4"}, "a launcher that sets WORLD_SIZE"),
    ],
)
def test_a_launcher_without_mpi(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = environment.launcher_world()
    assert found is not None
    assert found[0].startswith(name)
    assert found[1] == 4
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # mpirun comes first
    assert environment.launcher_world() == ("Open MPI's mpirun", 2)


@pytest.mark.parametrize("variables", [TORCHRUN, {"RANK": "0"}, {"WORLD_SIZE": "?"}])
def test_a_rank_without_a_size_is_no_launcher(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert environment.launcher_world() is None


ASK = (
    f"{sys.executable} -c 'import bare; from codedgrad.job import environment as e; "
    f"print(e.torchrun_inside_mpirun())'"
)
MPI, TORCH = "OMPI_COMM_WORLD_SIZE=2", "TORCHELASTIC_RUN_ID=x"


@pytest.mark.parametrize(
    ("outer", "inner", "inside"),
    [
        (MPI, TORCH, True),
        (TORCH, MPI, False),
        ("A=1", TORCH, False),
        (MPI, "A=1", False),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_torchrun_in_a_worker_of_mpirun(
    outer: str, inner: str, inside: bool, wrapped: bool
) -> None:
    """By real processes, also where torchrun starts a script that starts Python."""
    ask = f'sh -c "{ASK}; true"' if wrapped else ASK
    command = f"env {inner} {ask}; true"  # `true`: so that the shell stays their parent
    done = subprocess.run(
        ["env", outer, "sh", "-c", command],
        env=environment.without_launcher() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(inside), done.stderr


def test_nothing_makes_other_libraries_believe_in_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"OMPI_COMM_WORLD_SIZE": "2"})
    environment.keep_others_alone()
    # What Accelerate takes for the number of processes of DDP.
    names = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
    assert next(os.environ[n] for n in names if n in os.environ) == "1"
    assert not os.environ.keys() & OTHERS
    assert environment.launcher_world() == ("Open MPI's mpirun", 2)
    monkeypatch.setattr(os, "environ", {"PMI_SIZE": "2"})
    environment.keep_others_alone()
    assert os.environ == {"PMI_SIZE": "2"}


def test_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEDGRAD_GPU_DIRECT", raising=False)
    assert environment.gpu_direct()
    monkeypatch.setenv("CODEDGRAD_GPU_DIRECT", "0")
    assert not environment.gpu_direct()
    monkeypatch.setenv("CODEDGRAD_GPU_DIRECT", "off")
    with pytest.raises(ConfigError, match="DIRECT must be 0, 1 or unset, got 'off'"):
        environment.gpu_direct()
