"""The engine's part for MPI; a wheel may have one for each of several MPIs.

`codedgrad.job._mpi` is for the MPI that the package was built with. Where it was built
with several (MPICC=...:..., see setup.py), the parts for the others lie in folders that
are named after them. Only the one that fits is loaded: each brings its MPI's library.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

_FOLDERS = {"Open MPI": "mpi_openmpi", "MPICH": "mpi_mpich"}


def load(vendor: str) -> Any:
    """Return the extension module for an MPI, or the only one that there is.

    Args:
        vendor: of the MPI that runs, as mpi4py names it.

    Raises:
        ImportError: there is none, or its MPI library cannot be loaded.
    """
    folder = _FOLDERS.get(vendor)
    if folder is not None and find_spec(f"codedgrad.job.{folder}") is not None:
        return import_module(f"codedgrad.job.{folder}._mpi")
    return import_module("codedgrad.job._mpi")
