"""One wheel runs under MPICH and under the usual MPI; one for another is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
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


def without_checkouts(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(
    mpich: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Build a wheel for both MPIs, and install it where no checkout is on the path.

    Returns:
        Variables: the Python of an environment that has the wheel, and torch and what
        else it needs from this one.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("codedgrad", "csrc"):
        skip = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    # Engine and kernels know no MPI, and were built for this checkout: they are up to
    # date, and only the parts for MPI are compiled.
    place = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for built in (
        *ROOT.glob("codedgrad/job/_engine*.so"),
        *ROOT.glob("codedgrad/ops/*.so"),
    ):
        into = source / "build" / place / built.relative_to(ROOT)
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, into)
    beside = Path(sys.executable).parent / "mpicc"
    usual = str(beside) if beside.exists() else shutil.which("mpicc")
    env = os.environ | {"MPICC": f"{usual}:{PREFIX}/bin/mpicc"}
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), "."]
    done = run(env, build, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    fresh = folder / "environment"
    venv.create(fresh)
    python = str(fresh / "bin" / "python")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
    ]
    done = run(without_checkouts(os.environ), [*pip, str(wheel)])
    assert done.returncode == 0, done.stderr
    pure = sysconfig.get_path("purelib", vars={"base": str(fresh)})
    # A path in a .pth file; those in that folder, of checkouts, are not looked at.
    (Path(pure) / "others.pth").write_text(sysconfig.get_path("purelib"))
    return {"PYTHON": python}


def train(mpirun: list[str], env: dict[str, str], folder: Path, faults: str) -> str:
    """Train with the wheel that is installed; return the parameters' checksum."""
    if not (folder / "launch").exists():
        shutil.copytree(ROOT / "launch", folder / "launch")
    script = [env["PYTHON"], "launch/train.py", "--steps", "20", "--same-bits"]
    script += ["--faults", faults, "--out", "run"]
    done = run(without_checkouts(env), [*mpirun, *script], cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["same_on_all_workers"]
    return str(summary["checksum"])


@pytest.mark.timeout(500)  # it compiles
def test_a_wheel_under_mpich(
    mpich: dict[str, str], installed: dict[str, str], tmp_path: Path
) -> None:
    env = mpich | installed
    where = [env["PYTHON"], "-c", "import codedgrad; print(codedgrad.__file__)"]
    place = run(without_checkouts(env), where, cwd=tmp_path).stdout
    assert place.startswith(str(Path(env["PYTHON"]).parent.parent)), place
    mpirun = [f"{PREFIX}/bin/mpirun", "-n", "3"]
    calm = train(mpirun, env, tmp_path, "")
    assert train(mpirun, env, tmp_path, "slow:worker=2,factor=6") == calm


def test_the_same_wheel_under_the_usual_mpi(
    installed: dict[str, str], tmp_path: Path
) -> None:
    here = str(Path(sys.executable).parent)
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | installed | {"PATH": path, "OMP_NUM_THREADS": "1"}
    assert train(["bash", "launch/mpirun.sh", "-n", "2"], env, tmp_path, "")
