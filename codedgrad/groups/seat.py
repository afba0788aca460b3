"""A process's seat in the code: a worker of its own, or one of a local group.

The faces ask here for the parts of a step that differ between the two, so that they
themselves know no groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from codedgrad.errors import ConfigError
from codedgrad.exchange.engine import EngineExchange
from codedgrad.groups.exchange import FollowersExchange, LeadersExchange
from codedgrad.groups.help import GroupHelpWork
from codedgrad.groups.membership import form
from codedgrad.groups.passes import GroupPasses
from codedgrad.job.settings import resolve
from codedgrad.step.work import HelpWork, OwnWork

if TYPE_CHECKING:
    import torch

    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.groups.membership import LocalGroup
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.settings import Approximate, ExchangeSettings
    from codedgrad.row.layout import Layout
    from codedgrad.row.payload import Payload
    from codedgrad.step.items import WorkList
    from codedgrad.step.late import LatePass
    from codedgrad.step.passes import Passes
    from codedgrad.step.patience import Patience


class Opening(NamedTuple):
    """How an exchange begins.

    Attributes:
        first_step: number of the first step.
        approximate: when a step may end with an estimate; None: every step is exact.
        same_bits: whether no bit of a step may depend on who computes what.
    """

    first_step: int = 0
    approximate: Approximate | None = None
    same_bits: bool = False


class Pacing(NamedTuple):
    """What decides how long a worker goes on, and how long it waits."""

    late: LatePass
    patience: Patience


@dataclass(frozen=True)
class Seat:
    """Where a process sits.

    Attributes:
        job: the whole job.
        group: the local group that is the worker; None: the process itself is.
    """

    job: Runtime
    group: LocalGroup | None

    @property
    def workers(self) -> int:
        """Number of workers in the code."""
        return self.job.size if self.group is None else self.group.count

    @property
    def worker(self) -> int:
        """This worker's number in the code."""
        return self.job.rank if self.group is None else self.group.index

    @property
    def leads(self) -> bool:
        """Whether this process speaks for its worker, e.g. writes the log."""
        return self.group is None or self.group.leads

    def policy(self, policy: str | Approximate) -> Approximate | None:
        """Returns when a step may end with an estimate; None: every step is exact.

        Raises:
            ConfigError: `policy` is none, or does not go together with groups.
        """
        approximate = resolve(policy)
        if self.workers == 1:  # there is nobody to wait for
            return None
        if self.group is not None and approximate is not None:
            raise ConfigError(
                "an approximate policy does not go together with local_group yet; use "
                'policy="exact", or local_group=None'
            )
        return approximate

    def open_exchange(
        self, code: Code, layout: Layout, settings: ExchangeSettings, opening: Opening
    ) -> Exchange:
        """Open this process's side of the exchange. Collective over the job."""
        runtime, group = self.job, self.group
        if group is not None:
            if not group.leads:
                return FollowersExchange(group, layout)
            assert group.across is not None  # every leader has it
            runtime = group.across
        exchange = EngineExchange(
            runtime,
            code,
            layout,
            settings,
            first_step=opening.first_step,
            approximate=opening.approximate,
            deputies=opening.same_bits and group is None,
        )
        return exchange if group is None else LeadersExchange(group, exchange)

    def stages(
        self, passes: Passes, payload: Payload, work: WorkList, pacing: Pacing
    ) -> tuple[OwnWork, HelpWork | GroupHelpWork]:
        """Returns the two stages of a step that compute: own items, and help."""
        late, patience = pacing
        if self.group is None:
            own = OwnWork(passes, passes, work, late)
            return own, HelpWork(passes, work, patience)
        shared = GroupPasses(self.group, work.code, payload, passes)
        return OwnWork(passes, shared, work, late), GroupHelpWork(
            shared, work, patience
        )


def take_seat(job: Runtime, spec: str | int | None, model: torch.nn.Module) -> Seat:
    """Returns this process's seat; `spec` is the setting `local_group`. Collective.

    Raises:
        ConfigError: no such groups; on every process.
        MismatchError: the processes want different groups.
    """
    return Seat(job, form(job, spec, model))
