"""What a predictor has set up on one worker: hands, post, and the queries under way.

submit -> admit -> compute -> hands ----------------> answer
             |                                          ^
             +-- late --> post: ASK ... REPLY ----------+
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from codedgrad.errors import CodedGradError, ConfigError
from codedgrad.inference.serving import messages
from codedgrad.inference.serving.counts import Counts
from codedgrad.inference.serving.hands import Ask, Hands
from codedgrad.inference.serving.hedging import Hedging, Helpers
from codedgrad.inference.serving.post import Post
from codedgrad.inference.serving.query import Answer, tensors_of
from codedgrad.inference.serving.seen import Seen
from codedgrad.job.faults import Injector
from codedgrad.job.waiting import Waiting

if TYPE_CHECKING:
    from codedgrad.inference.serving.query import Query
    from codedgrad.inference.serving.served import Served
    from codedgrad.job.faults import Faults
    from codedgrad.job.runtime import Runtime

log = logging.getLogger("codedgrad")

_PART = "predictor"  # the name among the parts of a Runtime
_DRAIN_S = 10.0  # until what is under way at the end has come
_STOP_S = 1.0  # for threads that have nothing to do any more
_PASS_S = 60.0  # for the pass that is under way at the end
_LOOK_S = 5.0  # between two messages
_NAP_S = 1e-3
_numbers = itertools.count()


class User(Protocol):
    """Whoever the bureau works for."""

    def ended(self, query: Query) -> None:
        """Called once for each query, before those who wait hear of it."""

    def computed(self, query: Query, value: Any) -> None:
        """Called when the model's value is known, and those who wait have it."""


class Bureau:
    """The two threads of a worker, and its queries that are under way."""

    def __init__(
        self,
        job: Runtime,
        served: Served,
        patience: float | None,
        faults: Faults | None,
        user: User,
    ) -> None:
        """Open the post between all workers. Collective."""
        if job.outside:
            raise ConfigError(f"it cannot open a predictor: {job.outside}")
        self.job = job
        self._user = user
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._open: dict[int, Query] = {}
        self._said: set[str] = set()
        self.closed = False
        self.counts = Counts()
        self._seen = Seen(job.rank)
        self._hedging = None
        if patience is not None and job.size > 1:
            self._hedging = Hedging(self._seen, patience)
        self._helpers = Helpers(job.rank, job.size)
        self._served = served
        injector = Injector(faults, job.rank) if faults else None
        self._hands = Hands(self._served, self, job.rank, injector)
        self._channel = job.channel.duplicate()
        self._post = Post(self._channel.start_transport(), self)
        job.gather(b"", "to open a predictor")
        job.outlive()
        self._name = f"{_PART} {next(_numbers)}"
        job.parts[self._name] = self
        self._hands.start()
        self._post.start()

    # ---- queries of this worker ----

    def number(self) -> int:
        """Return the number of the next query."""
        return next(self._count)

    def admit(self, query: Query, most: int) -> bool:
        """Take a query, if fewer than `most` are under way."""
        with self._lock:
            if self.closed:
                raise ConfigError("the predictor is closed; make another one")
            if len(self._open) >= most:
                self.counts.add("refused")
                return False
            self._open[query.number] = query
        query.then = self._end
        return True

    def audit(self, query: Query) -> None:
        """Let this worker compute a query that is answered."""
        self._hands.add(query)

    def compute(self, query: Query, *, here: bool = False) -> None:
        """Let this worker compute a query, and others help when it is late.

        Args:
            query: of this worker's.
            here: it is computed in this thread; it is done when this returns.
        """
        if not here:
            self._hands.add(query)
        if self._hedging is not None:
            self._hedge(query, self._hedging)
        if here:
            self._hands.compute_here(query)

    def _hedge(self, query: Query, hedging: Hedging) -> None:
        wait_s = hedging.first_s(query.shape)
        if wait_s == 0.0:
            self.ask_now(query)
        else:
            query.next_ask_s = query.begun_s + wait_s

    def ask_now(self, query: Query) -> None:
        """Ask another worker to compute a query, too."""
        if self._hedging is None or query.done or self._post.failure:
            return
        if not query.fresh():
            self._no_help(query, "their inputs were changed, perhaps by the model")
            return
        query.next_ask_s = time.monotonic() + self._hedging.again_s(query.shape)
        helper = self._helpers.choose(query.asked)
        if helper is None:
            return
        try:
            data = messages.ask(query.number, self._served.draws, query.inputs)
        except (ConfigError, RuntimeError, TypeError, ValueError) as error:
            self._helpers.replied(helper)
            self._no_help(query, str(error))
            return
        if not query.fresh():  # while they were read
            self._helpers.replied(helper)
            self._no_help(query, "their inputs were changed, perhaps by the model")
            return
        query.asked.append(helper)
        self.counts.add("asked")
        self._post.send(helper, messages.ASK, data)
        if query.number not in self._open:  # `_end` may have missed this ask
            self._post.send(helper, messages.FORGET, messages.forget(query.number))

    def _no_help(self, query: Query, why: str) -> None:
        query.next_ask_s = math.inf
        self._say(f"nobody can help with these queries: {why}")

    def _end(self, query: Query) -> None:
        """Tell all who compute a query that it is done, and count it."""
        with self._lock:
            self._open.pop(query.number, None)
        for helper in list(query.asked):
            self._post.send(helper, messages.FORGET, messages.forget(query.number))
        if query.needless:
            self._hands.drop(query)
        self.counts.ended(query.answer, self.job.rank)
        if query.answer is not None and query.answer.exact:
            self._seen.answered(query.answer.who)
        self._user.ended(query)

    def _answer(self, query: Query, value: Any, who: int) -> None:
        none = torch.zeros(query.rows, dtype=torch.float64)
        query.take(Answer(value, True, none, who, query.seconds()))
        self._user.computed(query, value)

    # ---- what the hands have computed; see `hands.Results` ----

    def computed(self, query: Query, value: Any, seconds: float) -> None:
        """Answer a query of this worker's."""
        self._seen.note(query.shape, self.job.rank, seconds)
        self._answer(query, value, self.job.rank)

    def helped(self, ask: Ask, value: Any, seconds: float) -> None:
        """Send the output to the query's owner."""
        try:
            host = [one.device.type == "cpu" for one in tensors_of(value)]
            data = messages.reply(ask.number, messages.VALUE, seconds, [value, host])
        except ConfigError as error:
            self.not_helped(ask, str(error))
            return
        self.counts.add("helped_others")
        self._post.send(ask.owner, messages.REPLY, data)

    def not_helped(self, ask: Ask, text: str) -> None:
        """Tell the query's owner that there is no output."""
        status = messages.FAILED if text else messages.NEEDLESS
        data = messages.reply(ask.number, status, 0.0, text)
        self._post.send(ask.owner, messages.REPLY, data)

    def inputs_of(self, ask: Ask) -> tuple[Any, ...]:
        """Return the inputs on this worker's device."""
        return tuple(map(self._served.here, messages.inputs_of(ask.data)))

    # ---- what the post hears; see `post.Hearer` ----

    def hear(self, source: int, kind: int, data: bytes) -> None:
        """Take a message."""
        if kind == messages.ASK:
            try:
                ask = Ask(source, *messages.read_ask(data))
            except Exception as error:  # its owner counts the replies
                ask = Ask(source, messages.UNREADABLE, None, b"")
                self.not_helped(ask, f"an ask cannot be read: {error}")
                raise
            self._hands.help(ask)
        elif kind == messages.FORGET:
            self._hands.forget(source, messages.read_forget(data))
        elif kind == messages.REPLY:
            self._helpers.replied(source)
            self._take(source, messages.read_reply(data))

    def _take(self, source: int, reply: messages.Reply) -> None:
        if reply.status == messages.FAILED:
            self._say(f"worker {source} could not help: {reply.value}")
        query = self._open.get(reply.number)
        if reply.status != messages.VALUE or query is None:
            return
        self._seen.note(query.shape, source, reply.seconds)
        self._answer(query, self._served.here(*reply.value), source)

    def lost(self, worker: int, text: str) -> None:
        """Hear that a worker is lost; the others go on."""
        self._helpers.gone(worker)
        log.warning("%s; the predictor goes on without it", text)

    def look(self) -> bool:
        """Ask for help with what is late; returns whether something is waited for."""
        now = time.monotonic()
        with self._lock:
            late = [q for q in self._open.values() if q.next_ask_s <= now]
            waiting = any(q.asked for q in self._open.values())
        for query in late:
            self.ask_now(query)
        return waiting or bool(late)

    def _say(self, text: str) -> None:
        """Log something once."""
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            log.warning("%s", text)

    # ---- what is known, and the end ----

    @property
    def problem(self) -> str:
        """Why this worker answers no more queries, or takes no help; "" if it does."""
        if not self._hands.working:
            return "nobody computes queries any more"
        return self._post.failure

    def stats(self) -> dict[str, float]:
        """Return the counts by name."""
        return {
            "pending": len(self._open),
            "abandoned": self._hands.abandoned,
            **self.counts.to_dict(),
        }

    def latencies(self) -> tuple[list[int], float]:
        """Return the answers by `counts.BOUNDS_S`, and the sum of their seconds."""
        return list(self.counts.by_bound), self.counts.seconds

    def close(self) -> None:
        """End with all other workers. Collective."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        try:
            self._close()
        finally:
            self.leave()
        self.job.parts.pop(self._name, None)
        self._channel.free()

    def _close(self) -> None:
        waiting = Waiting(self.job, "for queries that are under way", quiet_s=5.0)
        while self._open and self._hands.working:  # each is computed here
            self.job.check()
            waiting.tick([])
            time.sleep(_NAP_S)
        occasion = "to close a predictor"
        self.job.gather(b"", occasion)
        # Nobody has queries any more, so what is under way now are the last replies.
        until = time.monotonic() + _DRAIN_S
        while self._helpers.waited_for() or self._post.pending:
            if self._post.failure or time.monotonic() > until:
                break
            time.sleep(_NAP_S)
        self.job.gather(b"", occasion)

    def leave(self) -> None:
        """End on this worker alone; the pass that is under way is waited for.

        Raises:
            CodedGradError: it has not ended, so the model is left in eval mode.
        """
        self._hands.end()
        until = time.monotonic() + _PASS_S
        while not self._hands.idle(_LOOK_S):
            if time.monotonic() > until:
                break
            log.warning("waits for a pass that is under way, to end a predictor")
        if not self.stop(_STOP_S) and not self._hands.idle(0.0):
            raise CodedGradError(
                f"a pass of the model has not ended within {_PASS_S:g} s, so the model "
                f"is left in eval mode; call train() once nobody computes with it"
            )

    def stop(self, timeout_s: float) -> bool:
        """End on this worker alone; see `codedgrad.job.runtime.Part`."""
        with self._lock:
            self.closed = True
        well = self._hands.stop(timeout_s)
        for query in list(self._open.values()):
            query.fail(CodedGradError("the predictor ended before this query did"))
        well = self._post.stop(timeout_s) and well
        if not self._hands.idle(timeout_s):
            log.error("a pass is still under way, so its model is left in eval mode")
            return False
        self._served.restore()
        return well
