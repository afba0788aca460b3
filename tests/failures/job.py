"""A job in which one thing is wrong, mostly on the last worker.

    job.py FOLDER CASE...

test_failures.py starts it. Every worker writes the error that it gets to
FOLDER/CASE.<worker>.txt, leaves the job, and joins a new one for the next case; the
process ends with the error of the last. Each case is the function of its name.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import data_cases
import dropin_cases
import evaluate_cases
import group_cases
import torch
from torch import nn
from training import DATA, criterion, everybody, last, train

import codedgrad
from codedgrad import codes


def different_code() -> None:
    n = codedgrad.size()
    train(nn.Linear(4, 3), code=codes.spread(n, micro=2 if last() else 4))


def different_bits() -> None:
    train(nn.Linear(4, 3), same_bits=last())


def different_pieces() -> None:
    train(nn.Linear(4, 3), pieces=False if last() else "auto")


def weights_in_some_passes(coded: Any, value: Any) -> Any:
    """The last worker returns no weight in step 2, and nobody stands in for it."""
    return value if coded.step == 2 and last() else (value, 2)


def weights_of_some_workers() -> None:
    train(nn.Linear(4, 3), loss=weights_in_some_passes, code=everybody())


def weights_in_estimates() -> None:
    policy = codedgrad.approximate(0.1)
    loss = lambda _, value: (value, 2)  # noqa: E731
    train(nn.Linear(4, 3), loss=loss, code=everybody(), policy=policy)


def negative_weight() -> None:
    def loss(_: Any, value: Any) -> Any:
        return value, -1 if last() else 2

    train(nn.Linear(4, 3), loss=loss, code=everybody())


def metric_of_some_workers() -> None:
    def loss(_: Any, value: Any) -> Any:
        return (value, {} if last() else {"accuracy": 0.5})

    train(nn.Linear(4, 3), loss=loss, code=everybody())


def metric_that_is_nan() -> None:
    def loss(_: Any, value: Any) -> Any:
        return value, {"accuracy": math.nan if last() else 0.5}

    train(nn.Linear(4, 3), loss=loss, code=everybody())


def metric_of_many_numbers() -> None:
    def loss(_: Any, value: Any) -> Any:
        return value, 1.0, {"accuracy": torch.ones(2) if last() else 0.5}

    train(nn.Linear(4, 3), loss=loss, code=everybody())


def metrics_in_estimates() -> None:
    def loss(_: Any, value: Any) -> Any:
        return value, {"accuracy": 0.5}

    train(nn.Linear(4, 3), loss=loss, policy=codedgrad.approximate(0.1))


def different_model() -> None:
    train(nn.Linear(4, 4 if last() else 3))


def different_order() -> None:
    parts = [("a", nn.Linear(4, 3)), ("b", nn.Linear(4, 3))]
    if last():
        parts.reverse()
    model = nn.ModuleDict(dict(parts))
    train(model)


def different_seed() -> None:
    train(nn.Linear(4, 3), seed=int(last()))


def code_of_another_size() -> None:
    train(nn.Linear(4, 3), code=codes.spread(codedgrad.size() + 1))


def no_gradient() -> None:
    train(
        nn.Linear(4, 3), code=everybody(), loss=lambda _, x: x.detach() if last() else x
    )


def not_a_number() -> None:
    def loss(coded: codedgrad.CodedGradient, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan") if last() and coded.step == 2 else x

    train(nn.Linear(4, 3), code=everybody(), loss=loss)


def gradient_not_a_number() -> None:
    """The fault is in the last bucket of a micro-batch, the others are sent."""
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 3))
    calls = 0

    def loss(coded: codedgrad.CodedGradient, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if last() and coded.step == 2 and calls % 2 == 0:
            return x + (model[0].weight[0, 0] * 0.0).sqrt()
        return x

    train(model, code=everybody(), loss=loss, bucket_mb=0.0002)


def exception_in_the_loss() -> None:
    def loss(coded: codedgrad.CodedGradient, x: torch.Tensor) -> torch.Tensor:
        if last() and coded.step == 1:
            raise KeyError("no such token: 'xyzzy'")
        return x

    train(nn.Linear(4, 3), code=everybody(), loss=loss)


def exception_between_steps() -> None:
    coded = codedgrad.CodedGradient(nn.Linear(4, 3))
    codedgrad.barrier()
    if last():
        raise OSError("disk full while writing a checkpoint")
    sampler = codedgrad.ShardSampler(DATA, 24)
    model = coded.model
    while True:
        for shards in coded.steps(sampler):
            coded.backward(lambda x, y: criterion(model(x), y), shards)


def leaves_early() -> None:
    """One worker's script ends while the others train on."""
    if last():
        return
    train(nn.Linear(4, 3))


def train_until(stop: Any, step: int = 1, code: codes.Code | None = None) -> None:
    """Train, but let the last worker call `stop` instead of a step; True ends it."""
    coded = codedgrad.CodedGradient(nn.Linear(4, 3), code or everybody())
    sampler = codedgrad.ShardSampler(DATA, 24)
    for epoch in range(50):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            if last() and coded.step == step and stop():
                return
            coded.backward(lambda x, y: criterion(coded.model(x), y), shards)


def train_drop_in_until(stop: Any) -> None:
    """The same with the drop-in."""
    model = nn.Linear(4, 3)
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters()
    )
    for step in range(50):
        if last() and step == 1 and stop():
            return
        criterion(model(DATA.tensors[0]), DATA.tensors[1]).backward()
        optimizer.step()
        optimizer.zero_grad()


def leaves_in_training() -> None:
    """One worker calls shutdown() in a step while the others train on."""
    train_until(codedgrad.shutdown)


def ends_by_a_break() -> None:
    train_until(lambda: True)


def ends_by_a_break_in_the_drop_in() -> None:
    train_drop_in_until(lambda: True)


def ends_by_exit_0_in_the_drop_in() -> None:
    train_drop_in_until(sys.exit)


def ends_by_exit_3() -> None:
    train_until(lambda: sys.exit(3))


def ends_while_others_help() -> None:
    """Back-ups do the work of the worker that has gone, as long as the window lets."""
    train_until(lambda: True, code=codes.spread(codedgrad.size(), micro=4))


def barrier_of_one() -> None:
    train_until(codedgrad.barrier)


def endless_loop() -> None:
    """One worker never comes to MPI_Finalize; the others shut down and end."""

    def stop() -> None:
        while True:
            pass

    try:
        train_until(stop)
    finally:
        codedgrad.shutdown()


def sparse_gradient() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 3, sparse=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.embedding(x.abs().long().clamp(max=9)).sum(1)

    train(Sparse())


def several_devices() -> None:
    train(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, device="meta")))


def dataset_too_small() -> None:
    train(nn.Linear(4, 3), data=DATA, batch=65)


def calls_a_wrapped_model() -> None:
    class DistributedDataParallel(nn.Module):  # torch's would need a process group
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    model = nn.Linear(4, 3)
    wrapped = DistributedDataParallel(model)
    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    train(model, lambda *_: nn.functional.cross_entropy(wrapped(x), y))


def batch_too_small() -> None:
    train(nn.Linear(4, 3), batch=codedgrad.size() - 1, same_bits=False)


def bad_faults() -> None:
    train(nn.Linear(4, 3), faults="slow:worker=99,factor=2" if last() else None)


def different_checkpoint() -> None:
    coded = codedgrad.CodedGradient(nn.Linear(4, 3))
    coded.load_state_dict({"step": 7 if last() else 5})


def overflow_on_the_wire() -> None:
    train(nn.Linear(4, 3), wire="float16", loss=lambda _, x: x * 1e7)


def overflow_of_the_sum() -> None:
    """Every row is within the range of the type, and their sum is beyond it."""

    def loss(coded: codedgrad.CodedGradient, x: torch.Tensor) -> torch.Tensor:
        if coded.step == 0:
            return x
        return 0.0 * x + 8e4 * coded.model.weight.sum()

    train(nn.Linear(4, 3), wire="float16", code=everybody(), loss=loss)


def no_such_wire() -> None:
    train(nn.Linear(4, 3), wire="int8")


def wire_of_a_linear_code() -> None:
    train(nn.Linear(4, 3), wire="bfloat16", code=codes.cyclic(codedgrad.size(), 1))


def wire_of_doubles() -> None:
    train(nn.Linear(4, 3).double(), wire="bfloat16")


def different_wire() -> None:
    train(nn.Linear(4, 3), wire="bfloat16" if last() else "float32")


def no_thread_multiple() -> None:
    """MPI runs below the level that the engine needs; see `main`."""
    codedgrad.init()


def run(case: str) -> None:
    """Call the function of this name."""
    others = (data_cases, dropin_cases, evaluate_cases, group_cases)
    for where in (sys.modules[__name__], *others):
        if hasattr(where, case):
            getattr(where, case)()
            return
    raise LookupError(case)


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    if cases == ["no_thread_multiple"]:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI

    for case in cases:
        torch.manual_seed(0)  # all workers have the same models
        try:
            if case != "no_thread_multiple":
                codedgrad.init(timeout_s=10)
            run(case)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            (folder / f"{case}.{MPI.COMM_WORLD.rank}.txt").write_text(text)
            if case == cases[-1]:
                raise
        finally:
            os.environ.pop("CODEDGRAD_FAULTS", None)
        if case == cases[-1]:
            return
        with contextlib.suppress(codedgrad.CodedGradError):
            codedgrad.shutdown()
        MPI.COMM_WORLD.Barrier()


if __name__ == "__main__":
    main()
