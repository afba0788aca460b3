"""Variables by which other libraries find the job; `init(export_env=True)` sets them.

They are torchrun's: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and MASTER_ADDR and
MASTER_PORT, at which worker 0 may listen. By them `torch.distributed` starts with
`init_process_group("gloo")`. Libraries also take them for a wish to train with
DistributedDataParallel, so nothing is exported unless it is asked for.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from codedgrad.job import addresses, environment

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime


def export(job: Runtime) -> None:
    """Set the variables, until `environment.withdraw`. Collective.

    Where worker 0 has an address and a port in its environment already (torchrun's),
    these are kept.
    """
    place = job.place
    mine = environment.master() or (_host(several=place.cross_size > 1), _free_port())
    told = f"{mine[0]} {mine[1]}".encode()
    first = job.gather(told, "to learn the address of worker 0")[0]
    host, port = first.decode().split()
    environment.export(
        {
            "RANK": str(place.rank),
            "WORLD_SIZE": str(place.size),
            "LOCAL_RANK": str(place.local_rank),
            "LOCAL_WORLD_SIZE": str(place.local_size),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }
    )


def _host(*, several: bool) -> str:
    """Return the address of this machine; `several`: others have to reach it."""
    found = addresses.candidates() if several else []
    return found[0] if found else addresses.LOOPBACK


def _free_port() -> int:
    """Return a port at which nobody listens now."""
    with socket.socket() as asked:
        asked.bind(("", 0))
        return int(asked.getsockname()[1])
