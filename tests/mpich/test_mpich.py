"""MPICH runs an engine that was built for it, and refuses one for another MPI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PREFIX = ROOT / ".cache" / "mpich"


@pytest.fixture(scope="module")
def mpich() -> dict[str, str]:
    """Install an MPICH in its own folder; return the environment that selects it."""
    if not (PREFIX / "bin" / "mpirun").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        subprocess.run([*pip, "--prefix", str(PREFIX), "mpich>=4.2"], check=True)
    return os.environ | {
        "PATH": f"{PREFIX}/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{PREFIX}/lib",
        "MPI4PY_MPIABI": "mpich",
        "OMP_NUM_THREADS": "1",
        # Open MPI's variables mean nothing to it; its own mpirun must be taken.
        "PYTHON": sys.executable,
    }


def run(
    env: dict[str, str], command: list[str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", "--kill-after=5", "300", *command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_engine_of_another_mpi_is_refused(mpich: dict[str, str]) -> None:
    from codedgrad.job import _mpi

    if _mpi.mpi_build_vendor() == "MPICH":
        return  # then it is not another
    script = [sys.executable, "-c", "import codedgrad; codedgrad.init()"]
    done = run(mpich, [f"{PREFIX}/bin/mpirun", "-n", "2", *script])
    assert done.returncode != 0
    assert done.stderr.count("the engine was built for Open MPI") >= 2, done.stderr
    assert "MPICC=" in done.stderr
    found = run(mpich, [sys.executable, "-m", "codedgrad", "doctor", "--json"])
    assert found.returncode == 1
    report = json.loads(found.stdout)
    assert not report["can_train"]
    assert "MPICH" in report["found"]["mpi"]["value"]
    assert "pip install" in report["found"]["engine"]["remedy"]


@pytest.mark.timeout(500)  # it compiles the engine
def test_training_under_mpich(mpich: dict[str, str], tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("codedgrad", "csrc", "launch"):
        skip = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    env = mpich | {"MPICC": f"{PREFIX}/bin/mpicc", "PYTHONPATH": str(tmp_path)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j2"]
    built = run(env, build, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    checksums = []
    for name, faults in (("calm", ""), ("slow", "slow:worker=2,factor=6")):
        script = [sys.executable, "launch/train.py", "--steps", "20", "--same-bits"]
        script += ["--faults", faults, "--out", name]
        done = run(env, [f"{PREFIX}/bin/mpirun", "-n", "3", *script], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["same_on_all_workers"]
        checksums.append(summary["checksum"])
    assert checksums[0] == checksums[1]
