"""The methods that the step benchmarks compare, one class for each library."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from harness import COMM, synchronize
from torch import Tensor, nn

import codedgrad
from codedgrad import Faults
from codedgrad.job.faults import Injector
from codedgrad.step.boundaries import Boundaries

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs import Job

    from codedgrad import codes

MICRO = 4


class Coded:
    """The library codedgrad, by CodedGradient; unless told, with `same_bits=True`."""

    def __init__(self, job: Job, code: codes.Code, **settings: Any) -> None:
        self.job = job
        settings.setdefault("same_bits", True)
        self.gradient = codedgrad.CodedGradient(job.model, code, **settings)
        whole = not settings["same_bits"]
        self.steps = job.endless(code.parts, code.shards if whole else None)

    def straggle(self, faults: str) -> None:
        """Inject this slowness from now on."""
        plan = Faults.parse(faults, COMM.size)
        self.gradient._passes._injector = Injector(plan, COMM.rank) if plan else None

    def step(self) -> None:
        """Do one step."""
        self.gradient.backward(self.job.forward, next(self.steps))
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


class Stretching:
    """Stretches a pass at its module boundaries; the pass is always needed."""

    def __init__(self, injector: Injector) -> None:
        """Take the injector of this worker."""
        self._injector = injector

    def visit(self) -> None:
        """Stretch the time since the last boundary."""
        self._injector.boundary(lambda: None)


class Synchronous:
    """The common part of Horovod and DDP: local passes, then one exchange."""

    def __init__(self, job: Job, passes: int = 1) -> None:
        """Take a job; `passes` over equal parts of a worker's samples make a step."""
        self.job = job
        self.count = passes
        self.boundaries = Boundaries(list(job.model.modules()))
        self.injector: Injector | None = None
        self.steps = job.endless(passes * COMM.size)
        self.done = 0

    def straggle(self, faults: str) -> None:
        """Inject this slowness from now on."""
        plan = Faults.parse(faults, COMM.size)
        self.injector = Injector(plan, COMM.rank) if plan else None

    def passes(self, loss: Callable[[int, Tensor, Tensor], None]) -> None:
        """Do the worker's passes of a step, stretched if it is a straggler."""
        shards = next(self.steps)
        if self.injector is not None:
            self.injector.begin(self.done, self.job.pass_s)
        self.done += 1
        injector = self.injector
        for index in range(self.count):
            batch = shards.fetch(COMM.rank * self.count + index)
            if injector is None:
                loss(index, *batch)
                continue
            stretching = Stretching(injector)
            injector.resume()
            with self.boundaries.watch(stretching):
                loss(index, *batch)
            stretching.visit()


class Horovod(Synchronous):
    """Horovod's DistributedOptimizer."""

    def __init__(self, job: Job, passes: int = 1) -> None:
        super().__init__(job, passes)
        import horovod.torch as hvd

        self.hvd = hvd
        hvd.init()
        self.optimizer = hvd.DistributedOptimizer(
            job.optimizer,
            named_parameters=job.model.named_parameters(),
            backward_passes_per_step=passes,
        )

    def step(self) -> None:
        """Do one step."""

        def one(_index: int, x: Tensor, y: Tensor) -> None:
            (self.job.forward(x, y) / self.count).backward()

        self.passes(one)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ddp(Synchronous):
    """DistributedDataParallel of torch, on Gloo or NCCL."""

    def __init__(self, job: Job, passes: int = 1) -> None:
        super().__init__(job, passes)
        self.wrapped = nn.parallel.DistributedDataParallel(job.model)
        job.model = self.wrapped

    def step(self) -> None:
        """Do one step."""

        def one(index: int, x: Tensor, y: Tensor) -> None:
            self.wrapped.require_backward_grad_sync = index == self.count - 1
            (self.job.forward(x, y) / self.count).backward()

        self.passes(one)
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


class Alone(Synchronous):
    """The same steps without an exchange: every worker does its own shard alone."""

    def one(self, _index: int, x: Tensor, y: Tensor) -> None:
        """Do one pass."""
        (self.job.forward(x, y) / self.count).backward()

    def step(self) -> None:
        """Do one step."""
        self.passes(self.one)
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


class Lockstep(Alone):
    """As Alone, but no worker goes on before all are there."""

    def step(self) -> None:
        """Do one step."""
        self.passes(self.one)
        barrier = COMM.Ibarrier()
        while not barrier.Test():
            time.sleep(1e-4)  # MPI's own waiting would take the others' cores
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


def block(method: Any, steps: int) -> float:
    """Return the slowest worker's seconds per step over `steps` steps."""
    if hasattr(method, "block"):  # the method runs in a job of its own
        return float(method.block(steps))
    method.step()  # the first one finds caches cold
    synchronize(next(method.job.model.parameters()).device)
    COMM.Barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        method.step()
    synchronize(next(method.job.model.parameters()).device)
    spent = time.perf_counter() - begin
    return COMM.allreduce(spent, op=_max) / steps


def in_turns(
    compared: dict[str, Any], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Return each method's seconds per step, by round; the methods take turns.

    The first round warms up and is not counted. The order changes from round to round,
    because a block's length also depends on the one before.
    """
    names = list(compared)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in random.Random(turn).sample(names, len(names)):
            spent = block(compared[name], steps)
            if turn > 0:
                seconds[name].append(spent)
    return seconds


def _max(a: float, b: float) -> float:
    return max(a, b)
