"""An MPI, an engine and a launcher that do not fit are refused with the remedy."""

from __future__ import annotations

import logging

import pytest

from codedgrad.errors import EnvironmentSetupError
from codedgrad.job import channel, environment, startup
from codedgrad.job.channel import Library


@pytest.mark.parametrize(
    ("built", "running", "fits"),
    [
        (("Open MPI", "5.0.6"), ("Open MPI", "5.1.0"), True),
        (("Open MPI", "4.1.6"), ("Open MPI", "5.0.6"), False),
        (("MPICH", "3.4.0"), ("MPICH", "4.2.3"), True),
        (("MPICH", "4.2.3"), ("Open MPI", "4.2.3"), False),
    ],
)
def test_which_mpi_an_engine_fits(
    built: tuple[str, str], running: tuple[str, str], fits: bool
) -> None:
    assert startup.same_mpi(built, running) == fits


def test_an_mpi_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = Library("", "MPICH", "4.2", "4.1", thread_level=1, thread_multiple=3)
    monkeypatch.setattr(channel, "load", lambda: mpi)
    with pytest.raises(EnvironmentSetupError, match=r"level 1, .* \(3\)"):
        startup.load_mpi()


@pytest.mark.parametrize("error", [ImportError, RuntimeError, OSError])
def test_no_mpi(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Library:
        raise error("no libmpi.so")

    monkeypatch.setattr(channel, "load", load)
    with pytest.raises(EnvironmentSetupError, match=r"\(no libmpi.so\). Install one"):
        startup.load_mpi()


def test_an_engine_of_another_mpi() -> None:
    mpi = Library("", "Some MPI", "1.2", "4.1", thread_level=3, thread_multiple=3)
    with pytest.raises(EnvironmentSetupError, match=r"Some MPI 1.2 runs here. Build"):
        startup.check_mpi_of_the_build(mpi)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("horovodrun --gloo", "horovodrun --mpi"),
        ("srun", "use the launcher that"),
        ("torchrun", "mpirun -n 4 python"),
        ("a launcher that sets WORLD_SIZE", "unset RANK, LOCAL_RANK and WORLD_SIZE"),
    ],
)
def test_a_launcher_of_another_mpi(
    name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "launcher_world", lambda: (name, 4))
    startup.check_launcher(4)
    words = f"{name} started 4 workers, but MPI sees 1: .*{remedy}"
    with pytest.raises(EnvironmentSetupError, match=words):
        startup.check_launcher(1)


@pytest.mark.parametrize("tasks", [0, 4])
def test_one_worker_is_said(
    tasks: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(environment, "launcher_world", lambda: None)
    monkeypatch.setattr(environment, "slurm_tasks", lambda: tasks)
    with caplog.at_level(logging.INFO, logger="codedgrad"):
        startup.check_launcher(1)
    (record,) = caplog.records
    assert record.getMessage().startswith("1 worker")
    assert record.levelno == (logging.WARNING if tasks else logging.INFO)
