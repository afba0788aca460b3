"""Before a decoded sum is used: was it computed from the same model and data by all?

Three comparisons; the functions of a step (`codedgrad.step.alike`) are compared by
their code, and two of them compare values:

- Before the first step, and before the first one after a checkpoint was loaded, all
  workers compare digests of their parameters, buffers and data. This is a collective.
- In every step, the check bits of the rows (see `codedgrad.row.checks`) hold a digest
  of the step's data, and in some of them one of all values (`codedgrad.step.values`).
  Where micro-batches of the step disagree, every worker sees it in the decoded sum. All
  compare their values then, to name the one that differs. A worker whose rows came too
  late for the step may find that the sum is of other data than its own, and ends the
  job with the same error on all workers.

Nothing of the sum has been used by then: gradients and buffers are as before the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import default_collate

from codedgrad.data.seeding import spread_bits
from codedgrad.errors import DataError, MismatchError
from codedgrad.job import agreement
from codedgrad.job.runtime import DISAGREE
from codedgrad.row import checks
from codedgrad.step.alike import FunctionsOfAll
from codedgrad.step.content import (
    content_digest,
    in_memory,
    refuse_if_it_must_repeat,
    sample_digests,
)
from codedgrad.step.held import ValuesHeld
from codedgrad.step.values import ValuesOfAll

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.data import ShardBatchSampler, StepShards
    from codedgrad.job.runtime import Runtime
    from codedgrad.row.payload import Payload
    from codedgrad.step.values import Named

    Pairs = list[tuple[str, str]]
    Decoded = tuple[Tensor, NDArray[Any]]

log = logging.getLogger("codedgrad")

_VALUE_BITS = 16  # of a word; the others are of the data's content
_VALUES = (1 << _VALUE_BITS) - 1
_CONTENT = checks.ALL & ~_VALUES
_OF_STEP = "step of the epoch", "samples of the epoch before", "sizes of micro-batches"
_OF_EXCHANGE = "backward passes of the exchange", "optimizer steps before it"
_THOROUGH = 8  # readings, when in doubt whether a dataset is deterministic
_EPOCHS = 8  # samplers that may take turns
_UNKNOWN = "not the same in every reading"
_UNREADABLE = "not readable: "  # begins what a worker says of such data
_RANDOM = (
    "%s returns another sample in every reading, so workers do not get the same one "
    "for the same index; draw random numbers from torch, numpy or `random`, which "
    "codedgrad seeds, for reproducible steps"
)
_BROKEN = "samples of %s are not compared between the workers, for some cannot be read"
_OWN_DATA = (
    "no two workers have a sample of their %s in common: fine for random data of a "
    "benchmark; but else samples count twice or never, since any worker may compute "
    "any of them: give all workers the same data"
)
_DATA = "All workers must go through the same data, in the same order."


class _Epoch(NamedTuple):
    """An epoch of one sampler, as the digests of its steps see it."""

    sampler: Any
    number: int
    values: int  # the digest of what the sampler says of itself
    content: int  # the digest of two samples; 0: none


class ValueCheck:
    """Compares the values that all workers must have in common, step by step."""

    def __init__(
        self,
        job: Runtime,
        payload: Payload,
        named: Named,
        *,
        modes: Callable[[], Pairs] = list,
        held: ValuesHeld | None = None,
        estimates: bool = False,
    ) -> None:
        """Prepare the comparisons.

        Args:
            job: all workers.
            payload: its tail carries the check bits.
            named: returns parameters and buffers with their values before the step.
            modes: returns more (name, value) pairs that are compared with the values.
            held: compares what the functions hold; None: they are not known.
            estimates: whether a step may end with an estimate.
        """
        self._job = job
        self._payload = payload
        self._tensors = ValuesOfAll(job, named, modes)
        self._functions = FunctionsOfAll(job)
        self.held = ValuesHeld(job, ()) if held is None else held
        self._estimates = estimates
        self._begun = False
        self._joined = False  # this step has nothing of this worker's
        self._step = 0
        self._word = 0
        self._sent: int | None = None  # the word in the tail, if all bits count 1
        self._position: tuple[Any, ...] = ()  # where this worker is: the values of
        self._names: tuple[str, ...] = ()  # these names
        self._epoch: _Epoch | None = None
        self._epochs: dict[int, _Epoch] = {}  # the last ones, by the sampler's id
        self._unreadable: list[Any] = []  # datasets that are not deterministic

    # ---- every step ----

    def begin(self, step: int, shards: StepShards, loss_fn: Any = None) -> None:
        """Note the data of a step, and its loss function, before its first pass.

        Raises:
            MismatchError: the values differ before the first step.
        """
        self._names = _OF_STEP
        self._position = shards.index, shards.before, shards.sizes
        sampler = getattr(shards, "sampler", None)
        collate_fn = getattr(getattr(sampler, "reader", None), "collate", None)
        if collate_fn is default_collate:  # torch's own, of whichever version
            collate_fn = None
        functions = self._functions.word(loss_fn, collate_fn)
        held = self.held.word((loss_fn, collate_fn), functions)
        mark = hash((*self._position, functions, held))
        self._begin(step, sampler, shards.epoch, mark)

    def begin_drop_in(
        self,
        step: int,
        sampler: ShardBatchSampler | None,
        made: tuple[int, int] | None = None,
    ) -> None:
        """Note the data of a step of the drop-in, whose loader may read ahead.

        Args:
            step: the number of the exchange.
            sampler: where the batches come from, if it is known.
            made: the backward passes of the exchange and the optimizer's steps so far,
                to be compared, too.

        Raises:
            MismatchError: the values differ before the first step.
        """
        epoch = -1 if sampler is None else sampler.begun_epoch
        if made is not None:
            self._names, self._position = _OF_EXCHANGE, made
        self._begin(step, sampler, epoch, step if made is None else hash((step, *made)))

    def _begin(self, step: int, sampler: Any, number: int, mark: int) -> None:
        epoch = self._epochs.get(id(sampler))
        if epoch is None or epoch.sampler is not sampler or epoch.number != number:
            epoch = self._look_at(sampler, number)
        self._epoch, self._step = epoch, step
        tensors = self._tensors.word(step)
        values = spread_bits(epoch.values, mark, tensors) & _VALUES
        content = spread_bits(epoch.content, mark) & _CONTENT if epoch.content else 0
        self._word = values | content
        self._joined = False
        if not self._begun:
            self._functions.compare(step)
            self._compare_data()
            if not self.held.compared:
                self.held.compare(self._functions.now)
            self._begun = True
        self._send()

    def begin_joined(self, step: int) -> None:
        """Note a step of the drop-in in which this worker only joins the others'.

        Raises:
            MismatchError: the values differ before the first step.
        """
        if not self._begun:
            self._begin(step, None, -1, step)
        self._joined, self._sent = True, None
        self._payload.tail.check(None)

    def _send(self) -> None:
        if self._estimates:
            self._payload.tail.check(self._word, checks.scales_of(self._step))
        elif self._sent != self._word:
            self._payload.tail.check(self._word)
            self._sent = self._word

    def verified(self, decoded: Decoded) -> Decoded:
        """Return a step's decoded sum if its check bits say what this worker says.

        Args:
            decoded: the sum, and its tail on the CPU.

        Raises:
            MismatchError: the step was not computed from the same data by all, or from
                other data than this worker's.
        """
        if self._joined:
            return decoded
        area = decoded[1][self._payload.layout.check_area]
        if checks.says(area, self._word):
            return decoded
        scales = checks.scales_of(self._step) if self._estimates else None
        reading = checks.read(area, scales)
        if reading is None or reading == (self._word, checks.ALL ^ self._word):
            return decoded
        if reading.disputed:
            buffers = self._payload.buffers
            if buffers.remembered:  # those of the step's beginning are compared
                buffers.restore()
            known = self._tensors.looked(self._step) and self._tensors.compare(
                self._step
            )
            if not known:
                self._functions.compare(self._step)
                known = self.held.looks and self.held.compare_again(self._step)
            if not (known or self._compare_data(disputed=True) or self._estimates):
                raise agreement.everywhere(
                    self._job,
                    f"{DISAGREE}data of step {self._step}, although their values are "
                    f"the same now: data changed during the step, or a row was damaged",
                )
        else:
            self._differ_alone(reading.ones)
        return decoded

    # ---- where something differs ----

    def _described(self) -> Pairs:
        pairs = [(n, str(x)) for n, x in zip(self._names, self._position, strict=True)]
        epoch = self._epoch
        if epoch is None or epoch.sampler is None:
            return pairs
        return [*epoch.sampler.describe(epoch.number), *pairs]

    def _compare_data(self, disputed: bool = False) -> bool:
        """Compare what all workers say of the step's data. Collective.

        Args:
            disputed: whether their words differed, so that a dataset whose readings
                agree now may have been lucky: it is read more often.

        Returns:
            Whether samples cannot be compared: a dataset proved not to be
            deterministic, or each worker has random numbers of its own for data.
        """
        job, where = self._job, f"data of step {self._step}"
        agreement.check_agreement(where, self._described(), _DATA)
        texts = self._contents(where, readings=2)
        alike = len(set(texts)) == 1 and _UNKNOWN not in texts
        if alike and not disputed:
            return False
        texts = self._contents(where, _THOROUGH)
        if alike and len(set(texts)) == 1 and _UNKNOWN not in texts:
            return False
        if "" in texts:  # of workers that may not read here
            self._leave_content_out("")
            return True
        if broken := [text for text in texts if text.startswith(_UNREADABLE)]:
            why = broken[0].removeprefix(_UNREADABLE).replace("%", "%%")
            self._leave_content_out(f"{_BROKEN}: {why}")
            return True
        if _UNKNOWN in texts or len(set(texts)) == 1:
            self._leave_content_out()
            return True
        if self._nothing_in_common(where):
            self._leave_content_out(_OWN_DATA)
            return True
        others = [worker for worker, text in enumerate(texts) if text != texts[0]]
        raise agreement.everywhere(
            job,
            f"{DISAGREE}{where}: the samples of {job.unit}(s) {others} are not those "
            f"of {job.unit} 0 with the same indices. {_DATA} Sort files by name, and "
            f"read the same version of them everywhere.",
        )

    def _contents(self, where: str, readings: int) -> list[str]:
        """Return every worker's digest of two samples. Collective."""
        mine = self._content(readings).encode()
        return [b.decode() for b in self._job.gather(mine, f"to compare the {where}")]

    def _nothing_in_common(self, where: str) -> bool:
        """Return whether no two workers' tensors share a sample. Collective."""
        assert self._epoch is not None
        mine = sample_digests(self._epoch.sampler.dataset)
        all_of_them = self._job.gather(mine, f"to compare the samples of the {where}")
        sets = [{b[i : i + 8] for i in range(0, len(b), 8)} for b in all_of_them]
        return all(sets) and len(set().union(*sets)) == sum(map(len, sets))

    def _differ_alone(self, theirs: int) -> None:
        """The step's sum has the word of others, to which this worker gave nothing."""
        differs = theirs ^ self._word
        # Perhaps others know more of what passes change; the next step tells the rest.
        if self.held.looks:
            return
        if not differs & _VALUES:
            content = self._content(_THOROUGH)
            if content in ("", _UNKNOWN) or content.startswith(_UNREADABLE):
                why = {"": "", _UNKNOWN: _RANDOM}.get(content, _BROKEN)
                self._leave_content_out(why)
                return
        job = self._job
        mine = ", ".join(f"{name} = {value}" for name, value in self._described())
        if not differs & _VALUES:
            mine = f"other samples with the same indices, with {mine}"
        elif self._tensors.looked(self._step):
            if job.unlike:  # its parameters may differ by rounding
                return
            mine = f"other values of parameters or buffers, or {mine}"
        text = (
            f"{DISAGREE}data of step {self._step}: {job.unit} {job.rank} has {mine}; "
            f"the others' rows, of which this step was decoded, say otherwise. {_DATA}"
        )
        job.fail(text)
        error = MismatchError(text)
        error.everywhere = True
        raise error

    # ---- the data ----

    def _look_at(self, sampler: Any, number: int) -> _Epoch:
        if not hasattr(sampler, "describe"):
            return _Epoch(sampler, number, 0, 0)
        text = repr(sampler.describe(number)).encode()
        values = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        epoch = _Epoch(sampler, number, values, 0)
        content = None
        if sampler.dataset is not None:
            with contextlib.suppress(DataError):  # the step will tell, if it must
                content = self._read(epoch, readings=2)
            if content is None and self._readable(sampler):
                refuse_if_it_must_repeat(sampler)
        if content is not None:
            epoch = epoch._replace(content=content + 1)
        self._keep(epoch)
        return epoch

    def _keep(self, epoch: _Epoch) -> None:
        self._epochs.pop(id(epoch.sampler), None)
        if len(self._epochs) == _EPOCHS:
            del self._epochs[next(iter(self._epochs))]
        self._epochs[id(epoch.sampler)] = epoch

    def _content(self, readings: int) -> str:
        """Return the digest of two samples, as a text; "" where none can be read."""
        sampler = getattr(self._epoch, "sampler", None)
        if getattr(sampler, "dataset", None) is None or not self._readable(sampler):
            return ""
        assert self._epoch is not None
        try:
            content = self._read(self._epoch, readings)
        except DataError as error:
            return f"{_UNREADABLE}{error}"
        return _UNKNOWN if content is None else str(content)

    def _read(self, epoch: _Epoch, readings: int) -> int | None:
        dataset = epoch.sampler.dataset
        if any(dataset is one for one in self._unreadable):
            return None
        if not self._readable(epoch.sampler):
            return None
        return content_digest(dataset, epoch.sampler.seed, epoch.number, readings)

    @staticmethod
    def _readable(sampler: Any) -> bool:
        """Return whether samples may be read here.

        A DataLoader's processes may not take over what this one has opened.
        """
        return getattr(sampler, "readable_here", False) or in_memory(sampler.dataset)

    def _leave_content_out(self, why: str = _RANDOM) -> None:
        """Stop comparing the samples of a dataset; `why` is told once, "" never."""
        assert self._epoch is not None
        dataset = self._epoch.sampler.dataset
        if not any(dataset is one for one in self._unreadable):
            self._unreadable.append(dataset)
            if why:
                log.warning(why, getattr(dataset, "title", type(dataset).__name__))
        self._epoch = self._epoch._replace(content=0)
        self._keep(self._epoch)
