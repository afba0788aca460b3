"""What Horovod's scripts ask of the library, and what is refused of it."""

from __future__ import annotations

from typing import Any

import torch

from codedgrad.errors import ConfigError
from codedgrad.hvd.words import Refused, check_process_set
from codedgrad.job import lifecycle, runtime

elastic = Refused(
    "elastic",
    "Save a checkpoint with codedgrad.save, and start the job again with the workers "
    "that there are: a checkpoint loads at any number of them",
)
run = Refused("run", "Start the script with mpirun, or with `codedgrad run -n 4`")
start_timeline = Refused(
    "start_timeline",
    "`codedgrad.CodedGradient(log=...)` and `codedgrad report` have one",
)
stop_timeline = Refused(
    "stop_timeline",
    "`codedgrad.CodedGradient(log=...)` and `codedgrad report` have one",
)


def init(comm: Any = None, process_sets: Any = None) -> None:
    """Join the job; see `codedgrad.init`.

    Args:
        comm: mpi4py communicator of the workers; all of them if None.
        process_sets: None or [], since there are none.

    Raises:
        ConfigError: `comm` is a list of ranks, or there are process sets.
    """
    if isinstance(comm, (list, tuple)):
        if comm:
            raise ConfigError(
                f"hvd.init(comm={comm!r}): ranks cannot be chosen from the job; give a "
                f"communicator of mpi4py, or start as many workers as shall train"
            )
        comm = None
    for one in process_sets or ():
        check_process_set(one)
    lifecycle.init(comm)


def is_homogeneous() -> bool:
    """Return whether every machine has the same number of workers."""
    job = runtime.current()
    mine = str(runtime.local_size()).encode()
    return len(set(job.gather(mine, "to compare the machines' workers"))) == 1


def mpi_threads_supported() -> bool:
    """Return True: MPI is called from any thread."""
    return True


def mpi_built() -> bool:
    """Return True: the engine exchanges through MPI."""
    return True


def mpi_enabled() -> bool:
    """Return True: the engine exchanges through MPI."""
    return True


def gloo_built() -> bool:
    """Return False: gradients do not go through Gloo."""
    return False


def gloo_enabled() -> bool:
    """Return False: gradients do not go through Gloo."""
    return False


def nccl_built() -> int:
    """Return 0: gradients do not go through NCCL."""
    return 0


def ddl_built() -> bool:
    """Return False: gradients do not go through IBM's DDL."""
    return False


def ccl_built() -> bool:
    """Return False: gradients do not go through oneCCL."""
    return False


def cuda_built() -> bool:
    """Return whether this torch is built for CUDA; models may lie on GPUs then."""
    return torch.version.cuda is not None


def rocm_built() -> bool:
    """Return False: there are no kernels for ROCm."""
    return False


def check_extension(*_: Any) -> None:
    """Do nothing: there is one extension, which `init` checks."""
