"""Which processes form a group, and the place of this process in its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError
from codedgrad.groups.channel import GroupChannel
from codedgrad.groups.connect import Leaders, connect
from codedgrad.job.agreement import check_agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from codedgrad.job.runtime import Runtime


def partition(spec: str | int, machines: Sequence[int]) -> list[list[int]]:
    """Cut the job's processes into groups.

    Args:
        spec: "node", the processes of each machine; or a number of consecutive ranks.
        machines: the machine of every rank.

    Returns:
        The ranks of each group, the groups in order of their first ranks.

    Raises:
        ConfigError: `spec` is neither, the groups have unequal sizes, or one of them
            spans several machines.
    """
    if spec == "node":
        groups = [
            [r for r, machine in enumerate(machines) if machine == m]
            for m in dict.fromkeys(machines)
        ]
    elif isinstance(spec, int) and not isinstance(spec, bool) and spec >= 1:
        ranks = list(range(len(machines)))
        groups = [ranks[i : i + spec] for i in ranks[::spec]]
    else:
        raise ConfigError(
            f'local_group must be "node", a number of processes, or None, got {spec!r}'
        )
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"local_group={spec!r} cuts {len(machines)} processes into groups of "
            f"unequal sizes, {', '.join(map(str, sizes))} by group; start as many "
            f"processes on every machine, or choose a local_group that divides them"
        )
    for index, group in enumerate(groups):
        if len({machines[r] for r in group}) > 1:
            raise ConfigError(
                f"local_group={spec!r} puts processes of several machines into group "
                f"{index} (ranks {group}); place neighbouring ranks on one machine "
                f'(mpirun --map-by slot), or use local_group="node"'
            )
    return groups


def form(
    runtime: Runtime, spec: str | int | None, model: torch.nn.Module
) -> LocalGroup | None:
    """Return this process's group, or None if groups have one process. Collective.

    The groups of a job are formed once; another model with the same `spec` shares them.

    Args:
        runtime: the job.
        spec: see `partition`; None for no groups.
        model: its device decides how the processes are connected.

    Raises:
        ConfigError: see `partition`; raised on every process.
        MismatchError: the processes want different groups.
    """
    if spec is None:
        return None
    device = next((p.device.type for p in model.parameters()), "cpu")
    backend = "nccl" if device == "cuda" else "gloo"
    check_agreement("local groups", [("local_group", f"{spec!r} on {device}")])
    mine = str(runtime.place.cross_rank).encode()
    machines = [int(b) for b in runtime.gather(mine, "to form local groups")]
    if runtime.absent:
        raise ConfigError(
            f"worker(s) {runtime.absent} are lost, and local groups need all workers"
        )
    groups = partition(spec, machines)
    if len(groups[0]) == 1:
        return None
    name = f"local_group={spec} {backend}"
    part = runtime.parts.get(name)
    if not isinstance(part, LocalGroup):
        part = runtime.parts[name] = LocalGroup(runtime, groups, backend)
    return part


class LocalGroup(GroupChannel):
    """A group's channel that also knows the other groups.

    It is a `runtime.Part`: it lasts as long as the job.

    Attributes:
        count: the number of groups.
        index: this group's number, which is the worker's number in the code.
    """

    def __init__(self, runtime: Runtime, groups: list[list[int]], backend: str) -> None:
        """Connect the processes of every group, and the leaders. Collective."""
        self.count = len(groups)
        self.index = next(i for i, g in enumerate(groups) if runtime.rank in g)
        # This may fail, so it comes first: the leaders' engine runs until `stop`.
        connection = connect(runtime, groups, backend)
        super().__init__(runtime, groups[self.index], connection)
        self._leaders: Leaders | None = None
        if self.leads:
            self._leaders = Leaders(runtime, [ranks[0] for ranks in groups])

    @property
    def across(self) -> Runtime | None:
        """The leaders' runtime, in which a rank is a group; None on other processes."""
        return None if self._leaders is None else self._leaders.runtime

    def stop(self, timeout_s: float) -> bool:
        """End the group with the job, see `runtime.Part`."""
        clean = not self.gave_up
        if self._leaders is not None:
            clean = self._leaders.stop(timeout_s) and clean
        if clean:
            self.connection.close()
        return clean
