"""What the user of the drop-in asks for, and how far a worker is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.job.settings import resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.data import ShardBatchSampler
    from codedgrad.job.settings import Approximate, Settings

JOINED = 65536.0  # more than the other numbers of all workers together


@dataclass(frozen=True)
class DropInPlan:
    """What an exchange of the drop-in is.

    Attributes:
        code: who computes what.
        passes: backward passes of an exchange.
        settings: of the exchange and the run.
        multiply: by what gradients are multiplied as they come: 1 for the mean over
            the workers, their number for the sum.
        catch_up: whether a late worker leaves out forwards that nobody needs.
        sparse_as_dense: whether a sparse gradient stays dense when it is decoded.
    """

    code: Code
    passes: int
    settings: Settings
    multiply: int = 1
    catch_up: bool = True
    sparse_as_dense: bool = False

    def estimates(self, workers: int) -> Approximate | None:
        """Returns when owners settle for an estimate; None: never.

        Raises:
            ConfigError: it is no policy.
        """
        policy = resolve(self.settings.policy)
        return policy if workers > 1 else None

    def check(self, workers: int) -> None:
        """Refuse a code or a number of passes that does not fit.

        Raises:
            ConfigError: with the remedy.
        """
        code = self.code
        if code.workers != workers:
            raise ConfigError(
                f"the code is for {code.workers} workers and the job has {workers}; "
                f"build it with codedgrad.size()"
            )
        if code.linear or any(n != 1 for n in code.required):
            raise ConfigError(
                f"the drop-in optimizer needs a code whose workers send one plain sum, "
                f"like codes.uncoded or codes.fractional; {code.describe()} needs one "
                f"backward per shard: use codedgrad.CodedGradient"
            )
        if self.passes < 1:
            raise ConfigError(
                f"backward_passes_per_step must be >= 1, got {self.passes}"
            )


class Trained(NamedTuple):
    """What the user trains.

    Attributes:
        optimizer: the optimizer.
        named: its parameters, by name.
        model: the module they are of; None: neither buffers nor random numbers are
            made the same.
        sampler: where the batches come from, if it is to skip some.
    """

    optimizer: torch.optim.Optimizer
    named: list[tuple[str, Tensor]]
    model: torch.nn.Module | None
    sampler: ShardBatchSampler | None


@dataclass
class Progress:
    """What a worker has done when an exchange completes.

    Attributes:
        passes: backward passes of the exchange.
        steps: steps of the optimizer.
        joined: it has no batches any more, and waits until all have none.
    """

    passes: int = 0
    steps: int = 0
    joined: bool = False

    def number(self, usual_passes: int) -> float:
        """Returns a number that is the same on workers which do the same.

        It is small in a usual exchange, so that a sum of many has no rounding to speak
        of. That of a worker that has joined is larger than any other.
        """
        if self.joined:
            return JOINED
        return float(4 * ((usual_passes - self.passes) % 64) + self.steps % 4)


def no_join(trained: Trained, plan: DropInPlan) -> str:
    """Returns why workers cannot have unequal numbers of batches, or ""."""
    if trained.sampler is not None:
        return "join() is for loops without sampler=, whose workers read equally often"
    if plan.settings.policy != "exact":
        return "join() needs exact exchanges; an approximate policy misses nobody"
    code = plan.code
    if code.work != codes.uncoded(code.workers, micro=code.micro).work:
        return (
            f"join() needs a code without redundancy, such as codes.uncoded; in "
            f"{code.describe()} a worker that joins is not missed"
        )
    return ""


def share_of(code: Code, worker: int) -> float:
    """Returns the share of the batch that a worker computes."""
    node = code.work[worker][0]
    return (int(code.tree.stop[node]) - int(code.tree.start[node])) / code.parts
