"""`evaluate`, the stages of an evaluation in order; nothing is computed here.

weights and data -> own parts -> rows -> parts of the late -> decoded sums
-> compared -> results by sample gathered
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from codedgrad.errors import WorkerError
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
    from codedgrad.inference.samples import Whole
    from codedgrad.inference.session import Session
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

    Each sample is evaluated once. The workers divide the batches, and those that are
    done compute what a late one has not begun. Sums have the same bits on every worker,
    whoever was late, and with any number of workers: integers are exact, floats are
    added in float64 in an order that depends on the number of batches alone. Meanwhile
    the model is in eval mode, without gradients, and afterwards as before.

    Args:
        model: a module, the same on all workers, or a list of them.
        data: a map-style data set, a tuple of tensors, a `ShardSampler` (its data set
            and loader processes are taken) or a DataLoader.
        fn: called with each batch as a loss function is, on whichever worker has time.
            It returns a dictionary of what is summed: numbers, and tensors of the same
            shapes for every batch. What is in `Each` is gathered, in the data's order.
        batch_size: samples of a batch; the last one may be smaller. None: a
            DataLoader's own, else 64.
        code: who may help whom; None: all help all.
        patience: how much longer than usual an idle worker waits, as a share, before
            it computes once more what a late one has begun.
        progress: whether worker 0 shows a bar; None: if there are tqdm and a terminal.
        **reading: for a data set: `collate_fn`, `seed` (of random augmentation) and
            how batches are read ahead, see `LoaderSettings`.

    Returns:
        The sums by name: int and float, or tensors of int64 and float64 on the CPU; and
        what was gathered.

    Raises:
        ConfigError: the data set is empty, the function returns something else, other
            metrics for some batch, or changes the model.
        MismatchError: weights, data or metrics differ; it names the worker.
        WorkerError: another worker failed; the message says which and why.
    """
    job = runtime.current()
    with start.failing_together(job, "could not begin to evaluate"):
        session = session_of(job)
    with start.failing_together(job, f"failed in evaluation {session.number}"):
        check_code(code, job.size)
        whole = whole_of(data, batch_size, reading, evaluate)
        wanted = Wanted(models_of(model), whole, code, patience, progress)
        return wanted.totals(session, fn)


class Wanted(NamedTuple):
    """What is evaluated, and how; see `evaluate`."""

    models: Sequence[nn.Module]
    whole: Whole
    code: Code | None
    patience: float
    progress: bool | None

    def totals(self, session: Session, fn: Callable[..., Any]) -> dict[str, Any]:
        """Returns what `evaluate` does. Collective."""
        job, whole, models = session.job, self.whole, self.models
        parts = cut(session.tree, whole.batches)
        shares = Shares(parts, job.rank, job.size, self.code)
        helping = "all" if self.code is None else self.code.fingerprint()
        ahead = [b for i in shares.own for b in range(parts[i].first, parts[i].stop)]
        shown = self.progress if job.rank == 0 else False
        with (
            undisturbed(models) as guard,
            Bar(show=shown, total=whole.batches) as bar,
            boundaries_of(models) as boundaries,
            whole.open(ahead) as batches,
        ):
            # Loader processes have started before this process reads a sample.
            own = Own(models, [*whole.describe(0), ("code", helping)])
            work = Work(session, shares, fn, Aids(batches, boundaries, guard, bar, own))
            while (decoded := work.attempt(self.patience)).need:
                session.enlarge(decoded.need)
        schema = own.check(job, decoded, work.schema)
        found = sums.unflatten(schema, decoded.sums(schema))
        found |= gathered(job.rank, schema, decoded.makers(schema), work.each)
        return {entry.name: found[entry.name] for entry in schema}


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
        WorkerError: a worker was lost with its results.
    """
    wanted = [i for i, entry in enumerate(schema) if not entry.summed]
    if not wanted:
        return {}
    mine = [
        [part, [sums.joined(schema[i], [each[part][i]]) for i in wanted]]
        for part, maker in enumerate(makers)
        if maker == rank
    ]
    every = collectives.objects_of_the_present(mine)
    found = dict(pair for one in every for pair in one)
    if gone := [part for part in range(len(makers)) if part not in found]:
        raise WorkerError(
            f"worker(s) {sorted({makers[part] for part in gone})} were lost with their "
            f"results by sample before all had got them; evaluate once more"
        )
    return {
        schema[i].name: sums.joined(
            schema[i], [[found[part][place]] for part in range(len(makers))]
        )
        for place, i in enumerate(wanted)
    }
