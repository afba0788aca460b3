"""Types of the Python module of the transport over MPI; see csrc/bindings/mpi.cpp.

It is built where there is an MPI, and it alone is linked with MPI's library.
"""

from typing import Any

def transport(fortran_comm: int, max_tag: int = ...) -> Any:
    """Messages by MPI, with no tag above `max_tag`, even where MPI has more.

    Returns:
        A capsule for `_engine.foreign_transport` or `_engine.Engine.over_foreign`.
    """

def mpi_build_vendor() -> str: ...
def mpi_build_version() -> str: ...
def mpi_library_version() -> str: ...
def mpi_reads_cuda_memory() -> bool: ...
