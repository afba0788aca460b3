"""Environment variables: what launchers set, and switches."""

from __future__ import annotations

import os

import pytest

from codedgrad.errors import ConfigError
from codedgrad.job import environment

LAUNCHERS = ("OMPI_", "PMI", "SLURM_", "HOROVOD_")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
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


def test_torchruns_variables_beat_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RANK": "7"})
    environment.export_torchrun_variables({"RANK": 1, "WORLD_SIZE": 2, "ADDR": None})
    assert os.environ == {"RANK": "7", "WORLD_SIZE": "2"}


def test_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEDGRAD_GPU_DIRECT", raising=False)
    assert environment.gpu_direct()
    monkeypatch.setenv("CODEDGRAD_GPU_DIRECT", "0")
    assert not environment.gpu_direct()
    monkeypatch.setenv("CODEDGRAD_GPU_DIRECT", "off")
    with pytest.raises(ConfigError, match="DIRECT must be 0, 1 or unset, got 'off'"):
        environment.gpu_direct()
