"""How a new process in the place of a lost worker gets into a training that runs.

    in every `window` steps   each worker votes whether somebody asks to come in, and
                              collects the vote of `window` steps before: nobody waits
    all say the same          they let it in before the present step:
                              1. all connect, over lines of their own
                              2. the donor sends the state, the new one loads it
                              3. all tell each other, over their present engine,
                                 whether that went well: all get the same answer
                              4. if so they go on over the lines, with a new engine;
                                 if not they go on as before

Until 4 nothing of the training has changed, and whatever goes wrong ends the new
process only. docs/faults.md has the races.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from codedgrad.data import ShardSampler
from codedgrad.errors import CodedGradError, ConfigError, WorkerError
from codedgrad.groups.admission import Admission
from codedgrad.job import rejoin
from codedgrad.job.rejoin import Entry
from codedgrad.job.sockets.desk import Asker
from codedgrad.step import carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from codedgrad.data import Source, StepShards
    from codedgrad.groups.arrangement import Arrangement
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.sockets.lines import Lines
    from codedgrad.job.sockets.world import World
    from codedgrad.step.subject import Subject

log = logging.getLogger("codedgrad")

_MOST_ATTEMPTS = 5
_NOT_IN = "worker {} was not let in"
_made = 0  # CodedGradients of this process

Pairs = list[tuple[str, str]]


class Training(Protocol):
    """The part of a CodedGradient that is needed here."""

    @property
    def step(self) -> int:
        """The number of the next step."""

    @property
    def arrangement(self) -> Arrangement:
        """The present laying out."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""

    def go_on(self, arrangement: Arrangement, step: int) -> None:
        """Go on with this laying out, and with this step."""


class _Loop(NamedTuple):
    """The loop over epochs that runs."""

    source: Source
    described: Pairs  # what this process was at its start, and where it is


class Comeback:
    """Lets others come back into one training, or gets this process in."""

    def __init__(self, job: Runtime, subject: Subject, described: Pairs) -> None:
        """Begin to train.

        Args:
            job: all workers.
            subject: the model.
            described: what all workers have in common at the start.
        """
        global _made
        _made += 1
        self._job, self._subject = job, subject
        self._described: Pairs = []
        if rejoin.world_of(job.channel) is not None:
            number = ("CodedGradient", f"number {_made}")
            self._described = [*_script(), number, *described]
        self._tracked: dict[str, Any] = {}
        self._loops = 0
        self._loop: _Loop | None = None
        self._passes = 0  # loops over steps in this epoch
        self._looked: int | None = None  # before which step, the last time
        self._given = bytearray()  # the state that this process has entered with

    def track(self, things: dict[str, Any]) -> None:
        """Carry these over, too."""
        carried.check_tracked(things)
        self._tracked.update(things)

    def begin(self, training: Training, source: Source, epochs: int) -> None:
        """Begin a loop over epochs; a process that comes back enters the job here."""
        world = rejoin.world_of(self._job.channel)
        if world is None:
            return
        self._loops += 1
        kinds = {name: type(thing).__name__ for name, thing in self._tracked.items()}
        described = [
            ("loop over epochs", f"number {self._loops}, of {epochs} epochs"),
            ("data", f"{type(source).__name__}, batch_size={source.batch_size}"),
            ("tracked", ", ".join(f"{n} ({k})" for n, k in sorted(kinds.items()))),
            *self._described,
        ]
        self._loop = _Loop(source, described)
        if self._job.outside:
            self._enter(training, world)

    def begin_epoch(self) -> None:
        """Begin an epoch of the loop."""
        self._passes = 0

    def between(
        self, training: Training, source: Source, steps: Iterator[StepShards]
    ) -> Iterator[StepShards]:
        """Yield steps, and look before each whether somebody asks.

        At the end of an epoch nobody comes in: what follows the steps there, of a
        schedule say, is not for a process that has made none.
        """
        self._passes += 1
        for shards in steps:
            self.look(training, source)
            self.before_step()
            yield shards

    def end(self) -> None:
        """End the loop over epochs."""
        self._loop = None

    def before_step(self) -> None:
        """Undo what ran since this process entered: the head of an epoch.

        The others had run that before they gave the state away; it may draw random
        numbers, or change a rate or a mode.
        """
        if self._given:
            data, self._given = self._given, bytearray()
            carried.put(carried.decode(data), self._subject, self._tracked)

    def look(self, training: Training, source: Source) -> None:
        """Look whether somebody asks, before a step. Collective, and waits for nobody.

        Raises:
            ConfigError: this process has not entered the job.
        """
        job, step = self._job, training.step
        if job.outside:
            raise ConfigError(f"it cannot make steps: {job.outside}")
        if self._loop is None or self._loop.source is not source:
            return
        before, window = self._looked, training.arrangement.window
        if before is not None and before <= step < before + window:
            return
        self._looked = step
        world = rejoin.world_of(job.channel)
        if world is None or job.size == 1:
            return
        found = job.votes.take(job)
        if found is not None and (who := self._elected(world, found)) is not None:
            Admission(self, self._job, world).admit(training, who)
        job.votes.cast(job, json.dumps(self._vote(world, training)).encode())

    # ---- the vote ----

    def _vote(self, world: World, training: Training) -> dict[str, Any]:
        assert world.desk is not None
        asking = world.desk.asking()
        if not asking:
            return {"asks": None, "no": ""}
        why = self.why_not(world, training, asking[0])
        return {"asks": list(asking[0]), "no": why}

    def why_not(self, world: World, training: Training, who: Asker) -> str:
        """Return why a process that asks cannot come in; "": it can."""
        assert self._loop is not None
        assert world.desk is not None
        job = self._job
        theirs = json.loads(world.desk.asked(who) or "[]")
        others = job.progress.open - 1 - ("evaluations" in job.parts)
        if others > 0:
            return f"{others + 1} models are trained at a time, which is not built yet"
        if parts := sorted(set(job.parts) - {"evaluations"}):
            return f"the job has set up {parts}, which is not carried over"
        source = self._loop.source
        if not isinstance(source, ShardSampler):
            return f"it is not built yet for a {type(source).__name__}"
        if self._passes > 1:
            return "an epoch has several loops over its steps"
        if world.generation > 1:
            return "the script has called init() more than once"
        return (
            training.arrangement.why_not()
            or carried.why_not(self._subject, self._tracked)
            or _difference(self._loop.described, theirs)
        )

    def _elected(self, world: World, found: list[bytes | None]) -> Asker | None:
        """Return who is to be let in: the answer is the same on all workers."""
        assert world.desk is not None
        votes = {w: json.loads(v) for w, v in enumerate(found) if v is not None}
        first = next(iter(votes.values()))["asks"]
        if first is None or any(vote["asks"] != first for vote in votes.values()):
            return None
        who = Asker(*first)
        if who.rank in votes:  # the process before had voted, too
            return None
        why = [f"worker {w}: {v['no']}" for w, v in votes.items() if v["no"]]
        if why:
            alike = len({vote["no"] for vote in votes.values()}) == 1
            text = next(iter(votes.values()))["no"] if alike else "; ".join(why)
            self.refuse(world, who, text)
            return None
        return who

    def refuse(
        self, world: World, who: Asker, why: str, *, again: bool = False
    ) -> None:
        """Write down that a process is not let in, and whether it may ask again."""
        assert world.desk is not None
        text = f"worker {who.rank} cannot come back: {why}. The job goes on without it"
        try:
            world.desk.answer(who, rejoin.refuse(text, again=again), self._job.rank)
        except OSError as error:  # it asks until it gives up; the others go on
            log.warning("worker %d cannot be answered: %s", who.rank, error)
        if self._job.rank == min(
            set(range(self._job.size)) - {*self._job.losses.ranks}
        ):
            log.warning("%s", text)

    # ---- a process that comes back ----

    def _enter(self, training: Training, world: World) -> None:
        assert self._loop is not None
        job, attempt, begin = self._job, 1, 0.0
        while True:
            try:
                what = json.dumps(self._loop.described)
                entry = rejoin.wait_for_answer(job, what, attempt)
                begin = time.monotonic()
                lines, there, size = self._connect(training, entry)
                break
            except rejoin.NotNow as error:
                attempt += 1
                if attempt > _MOST_ATTEMPTS:
                    raise
                log.warning("%s; it asks again", error)
        training.arrangement.close("to enter the job")
        rejoin.move(job, entry, lines, there)
        training.go_on(training.arrangement.anew(entry.step), entry.step)
        self._looked = entry.step
        assert world.desk is not None
        try:
            world.desk.enter(job.rank, entry.process)
        except OSError as error:  # the others have it already
            log.warning("the supervisor is not told that it has entered: %s", error)
        log.info(
            "worker %d has entered in step %d, with %.1f MB from worker %d, in %.2f s",
            *(job.rank, entry.step, size / 1e6, entry.donor),
            time.monotonic() - begin,
        )
        job.votes.cast(job, json.dumps(self._vote(world, training)).encode())

    def _connect(
        self, training: Training, entry: Entry
    ) -> tuple[Lines, list[int], int]:
        """Take over the state; return the lines, who is there, and the state's bytes.

        Raises:
            ConfigError: the state does not fit.
            NotNow: the others have not let it in.
        """
        lines: Lines | None = None
        begin = time.monotonic()
        try:
            lines = rejoin.connect(self._job, entry)
            data = lines.hear(entry.donor, entry.within)
            problem = self._load(training, data) or _too_slow(entry, begin)
            with contextlib.suppress(WorkerError):  # no yes comes then, from nobody
                lines.say(entry.donor, problem.encode())
            there = lines.hear_yes(self._job.timeout_s)
        except BaseException as error:
            if lines is not None:
                lines.close()
            if isinstance(error, CodedGradError):
                raise rejoin.NotNow(f"{_NOT_IN.format(entry.rank)}: {error}") from None
            raise
        if not there:
            lines.close()
            if problem:
                raise ConfigError(f"{_NOT_IN.format(entry.rank)}: {problem}")
            raise rejoin.NotNow(
                f"{_NOT_IN.format(entry.rank)}; the others' log says why"
            )
        return lines, there, len(data)

    def _load(self, training: Training, data: bytearray) -> str:
        """Take over the state; return what is wrong with it, or ""."""
        assert self._loop is not None
        try:
            state = carried.decode(data)
            carried.load(state, self._subject, self._tracked, self._loop.source)
            self._given = data
            self._subject.learned.update(state["coded"].get("travelling", ()))
            theirs = [tuple(pair) for pair in state["described"]]
            return _difference(theirs, training.arrangement.describe_again())
        except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
            return f"the state cannot be loaded: {type(error).__name__}: {error}"

    def packing(self, training: Training) -> Callable[[], bytes]:
        """Return what packs the state for a process that comes back; it may be slow."""
        assert self._loop is not None
        self._subject.refresh()  # not in the thread that packs, beside the training
        coded, source = training.state_dict(), self._loop.source
        # All lay out again with that process, so what counts is what they are now.
        described = training.arrangement.describe_again()
        subject, tracked = self._subject, dict(self._tracked)

        def pack() -> bytes:
            state = carried.pack(subject, tracked, source, coded)
            state["described"] = [[str(name), str(value)] for name, value in described]
            return carried.encode(state)

        return pack


def _too_slow(entry: Entry, begin: float) -> str:
    """Returns that the others have not waited for it, if they have not, or ""."""
    took = time.monotonic() - begin
    if took < entry.within:
        return ""
    return (
        f"taking over the state took {took:.1f} s, and the others have waited "
        f"{entry.within:.1f} s; raise codedgrad.init(timeout_s=...), of which half is "
        f"given"
    )


def _script() -> Pairs:
    """Returns what tells one script from another."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    text = ""
    with contextlib.suppress(OSError):  # it is no file: a notebook, say
        text = hashlib.sha256(Path(path or "").read_bytes()).hexdigest()[:16]
    return [("script", f"{path or 'none'} [{text}]"), ("arguments", str(sys.argv[1:]))]


def _difference(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> str:
    """Returns the first of the (name, value) pairs that differs, in words, or ""."""
    for mine, other in zip(ours, theirs, strict=False):
        if list(mine) != list(other):
            if mine[0] != other[0]:
                return f"it has {other[0]} ({other[1]}), the job {mine[0]} ({mine[1]})"
            return f"it has {other[0]} = {other[1]}, the job has {mine[1]}"
    if len(ours) != len(theirs):
        return f"it has {len(theirs)} settings and tensors, the job {len(ours)}"
    return ""
