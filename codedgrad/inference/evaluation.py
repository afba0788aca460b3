"""`evaluate`, the stages of an evaluation in order; nothing is computed here.

weights and data -> own parts -> rows -> parts of the late -> decoded sums
-> compared -> results by sample gathered
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedgrad.inference import sums
from codedgrad.inference.compare import Own
from codedgrad.inference.guard import models_of, undisturbed
from codedgrad.inference.parts import Shares, check_code, cut
from codedgrad.inference.progress import Bar
from codedgrad.inference.samples import whole_of
from codedgrad.inference.session import session_of
from codedgrad.inference.work import Aids, Work, boundaries_of
from codedgrad.job import collectives, runtime
from codedgrad.step import start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from codedgrad.codes import Code
    from codedgrad.inference.sums import Schema, Values


def evaluate(
    model: nn.Module | Sequence[nn.Module],
    data: Any,
    fn: Callable[..., dict[str, Any]],
    batch_size: int | None = None,
    *,
    code: Code | None = None,
    patience: float = 0.1,
    progress: bool | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Evaluate a model on a whole data set, without waiting for stragglers. Collective.

        def fn(x, y):
            out = model(x)
            return {"right": (out.argmax(1) == y).sum(), "count": len(y)}

        totals = codedgrad.evaluate(model, validation, fn, batch_size=64)
        accuracy = totals["right"] / totals["count"]

    Each sample is evaluated once. The data set is cut into batches in its own order,
    the batches are divided among the workers, and those that are done compute what a
    late one has not begun. Sums have the same bits on every worker, whoever was late,
    and with any number of workers: integers are exact, floats are added in float64 in
    an order that depends on the number of batches alone.

    While it runs the model is in eval mode, without gradients. Modes, random numbers
    and buffers are afterwards as before, also after an error. It may be called between
    any two steps of a training, and is no barrier, but for the first call in a job and
    where results are gathered.

    Args:
        model: the module whose parameters and saved buffers must be the same on all
            workers, or a list of modules.
        data: a map-style data set, a tuple of tensors, a `ShardSampler` (of which the
            data set and the loader processes are taken) or a DataLoader.
        fn: called with each batch as a loss function is; returns a dictionary of what
            is to be summed: numbers, and tensors of any shape, the same ones for every
            batch. What is wrapped in `Each` is gathered in the order of the data set.
            It is called on whichever worker has time, so it may keep nothing.
        batch_size: samples of a batch, on one worker; the last one may be smaller.
            None: a DataLoader's own, else 64.
        code: who may help whom; None: all help all. `codes.uncoded(size())` waits.
        patience: how long an idle worker waits, beyond the usual time, before it
            computes what a late one has begun; a fraction of that time.
        progress: whether worker 0 shows a bar; None: if tqdm is installed and errors
            go to a terminal.
        **reading: for a data set: `collate_fn`, `seed` (of random augmentation) and
            how batches are read ahead, see `LoaderSettings`.

    Returns:
        The sums by name: int and float, or tensors of int64 and float64 on the CPU;
        and what was gathered, as one tensor or list for each name.

    Raises:
        ConfigError: the data set is empty, the function returns something else, or
            other metrics for some batch, or it changes the model.
        MismatchError: weights, data or metrics differ between the workers; it names
            the worker.
        WorkerError: another worker failed; the message says which and why.
    """
    job = runtime.current()
    job.check()
    session = session_of(job)
    with start.failing_together(job, f"failed in evaluation {session.number}"):
        models = models_of(model)
        check_code(code, job.size)
        whole = whole_of(data, batch_size, reading)
        shares = Shares(cut(session.tree, whole.batches), job.rank, job.size, code)
        helping = "all" if code is None else code.fingerprint()
        own = Own(models, [*whole.describe(0), ("code", helping)])
        batches = [b for i in shares.own for b in range(*shares.parts[i][1:])]
        with (
            undisturbed(models) as guard,
            Bar(show=progress, leads=job.rank == 0, total=whole.batches) as bar,
            boundaries_of(models) as boundaries,
            whole.open(batches) as read,
        ):
            work = Work(session, shares, fn, Aids(read, boundaries, guard, bar, own))
            while (decoded := work.attempt(patience)).need:
                session.enlarge(decoded.need)
        schema = own.check(job, decoded, work.schema)
        totals = sums.unflatten(schema, decoded.sums(schema))
        totals |= gathered(job.rank, schema, decoded.makers(schema), work.each)
        return {entry.name: totals[entry.name] for entry in schema}


def gathered(
    rank: int, schema: Schema, makers: Sequence[int], each: dict[int, Values]
) -> dict[str, Any]:
    """Returns the results by sample of all parts, by name. Collective if there are any.

    Args:
        rank: of this worker.
        schema: what the metrics are.
        makers: for each part, the worker whose results are taken.
        each: what this worker has computed, by part.

    Raises:
        ConfigError: a list holds something that cannot be sent.
    """
    wanted = [i for i, entry in enumerate(schema) if not entry.summed]
    if not wanted:
        return {}
    mine = [
        [part, [sums.joined(schema[i], [each[part][i]]) for i in wanted]]
        for part, maker in enumerate(makers)
        if maker == rank
    ]
    found = dict(pair for one in collectives.allgather_object(mine) for pair in one)
    return {
        schema[i].name: sums.joined(
            schema[i], [[found[part][place]] for part in range(len(makers))]
        )
        for place, i in enumerate(wanted)
    }
