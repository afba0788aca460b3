"""`CodedPredictor`: queries in, answers out; who computes what is the others' work."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codedgrad.errors import CodedGradError, ConfigError, OverloadError
from codedgrad.inference.compare import weights_of
from codedgrad.inference.serving.bureau import Bureau
from codedgrad.inference.serving.policy import Policy
from codedgrad.inference.serving.policy import exact as exact_policy
from codedgrad.inference.serving.query import Answer, Query
from codedgrad.inference.serving.second import Second, rows_of
from codedgrad.inference.serving.seen import Deadline, shape_of
from codedgrad.inference.serving.served import Served
from codedgrad.job import agreement, likeness, runtime
from codedgrad.step import start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from codedgrad.job.faults import Faults

_AUDIT = 16  # of so many answers of the stand-in one is compared with the model's
_TICK_S = 1.0  # between two looks whether the job has failed


class CodedPredictor:
    """Answers queries with a model, over the workers of the job.

        with codedgrad.CodedPredictor(model) as predictor:
            answer = predictor(x)  # answer.value has the bits of model(x)

    Every worker makes one, with the same model, and may then call it with queries of
    its own, or not: it helps the others in any case, in threads of its own, until it
    is closed. The worker that a query came to computes it. Where that takes longer than
    usual, an idle worker computes it, too, and the first answer counts; what is still
    being computed then is left between two modules of the model.

    Under `deadline(...)` a stand-in answers what is late, if its doubt is small enough.

    Meanwhile the model is in eval mode and must stay as it is. Autocast belongs into
    its forward. Outputs that are no numbers, tensors, or lists, tuples and dictionaries
    of these cannot be sent, so nobody helps with them.

    Args:
        model: the same on all workers.
        stand_in: called with the model's inputs, it returns its values and one doubt in
            [0, 1] for each query of the batch; it is trusted up to the doubt in its
            attribute `threshold`.
        policy: `exact()`, which is the default, or `deadline(...)`.
        patience: how much longer than usual a query may take before an idle worker
            helps, as a share; None: nobody helps.
        max_pending: how many queries of this worker's may be under way.
        faults: slowness on purpose; None reads CODEDGRAD_FAULTS.

    Raises:
        ConfigError: an argument is wrong.
        MismatchError: model or arguments differ between workers; raised on all.
    """

    def __init__(
        self,
        model: nn.Module,
        stand_in: Callable[..., Any] | None = None,
        *,
        policy: Policy | None = None,
        patience: float | None = 0.1,
        max_pending: int = 64,
        faults: Faults | str | None = None,
    ) -> None:
        """Compare the models and begin to help. Collective."""
        job = runtime.current()
        self._policy = exact_policy() if policy is None else policy
        self._second = None if stand_in is None else Second(stand_in)
        self._check(model, patience, max_pending)
        agreement.check_agreement(
            "predictor",
            [
                ("model", type(model).__qualname__),
                ("weights", weights_of([model])),
                ("policy", str(self._policy)),
                ("patience", str(patience)),
                *likeness.settings(),
            ],
            "Make it from the same values (codedgrad.broadcast_parameters("
            "model.state_dict())) with the same arguments on every worker.",
        )
        self._most = max_pending
        self._process = os.getpid()
        self._guesses = 0
        self._audited: Query | None = None
        self._learned = None
        if self._policy.quantile is not None:
            self._learned = Deadline(self._policy.quantile)
        slowness = start.faults_of(faults, job.size)
        served = Served(model, stand_in)
        try:
            self._bureau = Bureau(job, served, patience, slowness, self)
        except BaseException:
            served.restore()
            raise

    def _check(self, model: Any, patience: Any, max_pending: Any) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"CodedPredictor takes a torch module, got {type(model).__qualname__}"
            )
        if not isinstance(self._policy, Policy):
            raise ConfigError(
                f"policy is codedgrad.exact() or codedgrad.deadline(...), got "
                f"{self._policy!r}"
            )
        if self._second is None and not self._policy.exact:
            raise ConfigError(
                f"{self._policy} needs a stand_in that answers what is late; give "
                f"one, or take codedgrad.exact()"
            )
        if patience is not None and not 0.0 <= patience <= 100.0:
            raise ConfigError(
                f"patience is a share of the usual time, 0 to 100, or None for no "
                f"help, got {patience}"
            )
        if isinstance(max_pending, bool) or max_pending < 1:
            raise ConfigError(f"max_pending must be 1 or more, got {max_pending}")

    # ---- queries ----

    def __call__(self, *inputs: Any) -> Answer:
        """Answer one batch of queries; see `submit` and `result`."""
        if not self._policy.exact:
            return self.result(self.submit(*inputs))
        query = self._admit(inputs)
        try:
            self._bureau.compute(query, here=True)
            self._wait(query)
        except BaseException as error:
            query.fail(error)
            raise
        return query.outcome()

    def submit(self, *inputs: Any) -> Query:
        """Take a batch of queries; any thread may call this.

        Args:
            inputs: what the model is called with; the first dimension of its tensors
                counts the queries.

        Raises:
            OverloadError: `max_pending` queries are under way; this one was not taken.
            ConfigError: tensors have different numbers of queries, or the predictor
                is closed.
            WorkerError: the job has failed.
        """
        query = self._admit(inputs)
        try:
            self._begin(query)
        except BaseException as error:
            query.fail(error)
            raise
        return query

    def _admit(self, inputs: tuple[Any, ...]) -> Query:
        """Return a new query that counts as under way."""
        bureau = self._bureau
        rows = _rows(inputs)
        if _autocasts():
            raise ConfigError(
                "autocast is on where the query comes from, and would be off on the "
                "worker that helps; put it into the model's forward"
            )
        if os.getpid() != self._process:
            raise ConfigError(
                "this process was forked from the one that made the predictor, and has "
                "none of its threads; ask there"
            )
        bureau.job.check()
        query = Query(bureau.number(), inputs, rows, shape_of(inputs), self.deadline_s)
        if not bureau.admit(query, self._most):
            raise OverloadError(
                f"{self._most} queries are under way, as many as this worker takes "
                f"(max_pending={self._most}); ask again later, or elsewhere"
            )
        return query

    def _begin(self, query: Query) -> None:
        bureau = self._bureau
        if query.at_s == 0.0 and self._guess_all(query):
            if query.audited:
                bureau.audit(query)
            return
        bureau.compute(query)
        if not self._policy.replicates:
            return
        self._look(query)
        guess = query.guess
        doubtful = guess is not None and not bool(guess.trusted.all())
        if doubtful and not query.asked:
            bureau.ask_now(query)

    def result(self, query: Query) -> Answer:
        """Wait for the answer of a batch, and return it.

        The stand-in answers for the whole batch or for none of it.

        Raises:
            Exception: what the model has raised.
            WorkerError: the job has failed.
        """
        if not self._wait(query, query.at_s):
            self._guess_all(query)
        self._wait(query)
        return query.outcome()

    def parts(self, query: Query) -> Iterator[tuple[Tensor, Answer]]:
        """Yield the answers of a batch as they come, with the numbers of their rows.

        Those that the stand-in may answer come at the deadline, the others later.

        Raises:
            Exception: as `result`.
        """
        rest = torch.arange(query.rows)
        if not self._wait(query, query.at_s) and not self._guess_all(query):
            guess = query.guess
            if guess is not None and bool(guess.trusted.any()):
                early, rest = rest[guess.trusted], rest[~guess.trusted]
                value = rows_of(guess.values, early, query.rows)
                doubts = guess.doubts[early]
                rank = self._bureau.job.rank
                yield early, Answer(value, False, doubts, rank, query.seconds())
        self._wait(query)
        found = query.outcome()
        if len(rest) == query.rows:
            yield rest, found
        else:
            value = rows_of(found.value, rest, query.rows)
            doubts = found.doubt[rest]
            yield rest, found._replace(value=value, doubt=doubts)

    def _wait(self, query: Query, at_s: float = math.inf) -> bool:
        """Wait until a query is done, or until its second `at_s`; returns the first."""
        job = self._bureau.job
        while not query.wait(min(_TICK_S, at_s - query.seconds())):
            if query.seconds() >= at_s:
                return False
            if job.engine.failed:
                query.fail(job.error())
            elif self._bureau.closed and self._bureau.problem:
                query.fail(CodedGradError(f"no answer: {self._bureau.problem}"))
        return True

    def _look(self, query: Query) -> None:
        if self._second is not None and not query.guessed:
            if query.fresh():  # else the model has written into them
                query.guess = self._second.guess(query.inputs, query.rows)
            query.guessed = True

    def _guess_all(self, query: Query) -> bool:
        """Let the stand-in answer, if it is trusted with all of the batch."""
        self._look(query)
        guess = query.guess
        if guess is None or not bool(guess.trusted.all()):
            return False
        self._audit(query)
        rank, seconds = self._bureau.job.rank, query.seconds()
        query.take(Answer(guess.values, False, guess.doubts, rank, seconds))
        return True

    def _audit(self, query: Query) -> None:
        """Choose some of those that the stand-in answers, to be computed yet.

        Only so can a stand-in that errs be found out: what is computed in time says
        little of queries that come when nothing is.
        """
        if self._second is None or not self._second.learns:
            return
        self._guesses += 1
        free = self._audited is None or self._audited.over
        if self._guesses % _AUDIT == 0 and free:
            self._audited, query.audited = query, True

    def computed(self, query: Query, value: Any) -> None:
        """Let the stand-in learn from the model's answer."""
        if self._second is not None and query.guess is not None:
            self._second.compare(query.guess, value)

    def ended(self, query: Query) -> None:
        """Learn from a query that is done."""
        if self._learned is not None and query.answer is not None:
            answer = query.answer
            self._learned.note(answer.seconds, query.at_s, exact=answer.exact)

    # ---- what is known ----

    @property
    def deadline_s(self) -> float:
        """The seconds after which the stand-in may answer now; infinite: never."""
        if self._learned is not None:
            return self._learned.seconds
        return math.inf if self._policy.at_s is None else self._policy.at_s

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self._policy

    @property
    def problem(self) -> str:
        """Why this worker answers no more, or takes no help; "" if all is well."""
        return self._bureau.problem

    def stats(self) -> dict[str, float]:
        """Return what was counted since the begin, and quantiles of the last answers.

        "exact", "helped" and "stand_in" count answers: of this worker's model, of
        other workers', and of the stand-in. "refused" counts queries over
        `max_pending`, "asked" the asks for help, "abandoned" passes that were left.
        """
        errors = 0 if self._second is None else self._second.errors
        return {**self._bureau.stats(), "stand_in_errors": errors}

    def latencies(self) -> tuple[list[int], float]:
        """Return how many answers came within each of `counts.BOUNDS_S`, and the sum.

        The sum is of all answers' seconds.
        """
        return self._bureau.latencies()

    # ---- the end ----

    def close(self) -> None:
        """Answer what was taken, help until all workers have come here, and end.

        Afterwards the model is in the mode that it was in before. Collective.

        Raises:
            WorkerError: the job has failed, or a worker did not come.
        """
        self._bureau.close()

    def __enter__(self) -> CodedPredictor:
        """Return the predictor."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; after an error without waiting for the others."""
        if kind is None:
            self.close()
        else:
            self._bureau.leave()


def _autocasts() -> bool:
    return any(map(torch.is_autocast_enabled, ("cpu", "cuda")))


def _rows(inputs: tuple[Any, ...]) -> int:
    """Return the number of queries in a batch."""
    if not inputs:
        raise ConfigError("a query has at least one input, got none")
    for one in inputs:
        if isinstance(one, (list, tuple)) and any(isinstance(x, Tensor) for x in one):
            shapes = [tuple(x.shape) for x in one if isinstance(x, Tensor)]
            raise ConfigError(
                f"queries travel as one tensor whose first dimension counts them, got "
                f"a {type(one).__name__} of {len(one)} (shapes {shapes[:4]}); stack "
                f"those of one shape, and send others by themselves"
            )
    counts = {len(x) for x in inputs if isinstance(x, Tensor) and x.dim() > 0}
    if len(counts) > 1:
        raise ConfigError(
            f"the inputs hold different numbers of queries: {sorted(counts)}; the "
            f"first dimension of all tensors counts the queries"
        )
    return counts.pop() if counts else 1
