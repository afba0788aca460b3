"""What both faces do before the first step, and around every step."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from codedgrad.errors import MismatchError, WorkerError
from codedgrad.exchange import link
from codedgrad.job import agreement, environment, lifecycle, likeness, rejoin, runtime
from codedgrad.job.faults import Faults
from codedgrad.job.runtime import failure
from codedgrad.monitor.recorder import Recorder
from codedgrad.monitor.reporter import Reporter
from codedgrad.ops import objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.settings import Approximate, ExchangeSettings, RunSettings
    from codedgrad.row.payload import Payload


def described(
    payload: Payload,
    code: Code,
    settings: ExchangeSettings,
    others: list[tuple[str, str]],
    modules: list[tuple[str, str]],
) -> list[tuple[str, str]]:
    """Returns code, model and settings, which all workers must have in common.

    Args:
        payload: of this worker's model.
        code: who computes what.
        settings: of the exchange.
        others: (name, value) pairs of whatever else must agree.
        modules: such pairs of the model's modules.
    """
    return [
        *(pair for pair in others if pair[0] == "same_bits"),  # the code follows
        ("code", f"{code.describe()} [{code.fingerprint()[:12]}]"),
        *others,
        *likeness.settings(),
        ("window", str(settings.window)),
        ("bucket_mb", str(settings.bucket_mb)),
        ("wire", payload.layout.wire),
        *payload.layout.describe(),
        *modules,
    ]


def agree(payload: Payload, mine: list[tuple[str, str]]) -> None:
    """Compare code, model, settings and hardware over all workers. Collective.

    Unlike hardware is worth a warning; anything else that differs is an error.

    Args:
        payload: of this worker's model.
        mine: what `described` has returned.

    Raises:
        MismatchError: on every worker, naming the workers and the first difference.
    """
    agreement.check_agreement("code, model or settings", mine)
    likeness.compare_hardware(runtime.current(), payload.layout.device)


def others(run: RunSettings, policy: Approximate | None) -> list[tuple[str, str]]:
    """Returns the (name, value) pairs of what must agree besides the exchange."""
    return [
        ("seed", str(run.seed)),
        ("same_bits", str(run.same_bits)),
        ("pieces", str(run.pieces)),
        ("policy", str(policy or "exact")),
    ]


def cut(runtime: Runtime, payload: Payload) -> None:
    """Cut the payload into buckets, all workers alike. Collective; after `agree`."""
    link.cut(runtime, payload.layout)


def faults_of(faults: Faults | str | None, workers: int) -> Faults | None:
    """Returns the slowness to inject; None reads the variable CODEDGRAD_FAULTS.

    Raises:
        ConfigError: the text is no plan for so many workers.
    """
    if faults is None:
        faults = environment.faults_text()
    if isinstance(faults, str):
        return Faults.parse(faults, workers) if faults.strip() else None
    return faults


def reporter_into(log: str | Path | None, worker: int) -> Reporter:
    """Returns what keeps a worker's reports and writes them into the folder `log`.

    Raises:
        ConfigError: the folder cannot be written, or holds another run.
    """
    if log is None:
        return Reporter(None)
    back = rejoin.process_of(runtime.current().channel) > 0
    recorder = Recorder(log, worker, goes_on=back)
    lifecycle.before_leaving(recorder.close)
    return Reporter(recorder)


def when_all_have_opened(job: Runtime, exchange: Exchange) -> None:
    """Wait for the others, so that nobody sends before all have opened the exchange.

    From then on the job outlives a worker, if the exchange does. Collective.
    """
    runtime.barrier()
    if exchange.outlives:
        job.outlive()


@contextmanager
def failing_together(runtime: Runtime, doing: str) -> Iterator[None]:
    """An error inside ends the job on every worker, with this error as the reason.

    Args:
        runtime: the job.
        doing: completes the sentence "worker 0 ...: ValueError: ...".

    Raises:
        WorkerError: the job has failed before.
    """
    runtime.check()
    try:
        yield
    except GeneratorExit:
        raise
    except WorkerError as error:
        runtime.fail(str(error))  # news only if the leaders' engine told it
        told = failure(str(error))
        if isinstance(told, MismatchError):  # another worker found that it differs
            raise told from None
        raise
    except MismatchError as error:
        if not error.everywhere:
            runtime.fail(f"worker {runtime.rank} {doing}: {error}")
        raise
    except BaseException as error:
        runtime.fail(f"worker {runtime.rank} {doing}: {type(error).__name__}: {error}")
        raise


@contextmanager
def own_gradients(payload: Payload) -> Iterator[None]:
    """Sets aside what `p.grad` holds (gradient accumulation) during the passes."""
    parameters = payload.layout.parameters
    before = None
    if not objects.all_none(parameters, "grad"):
        before = objects.read(parameters, "grad", False)
        objects.assign_all(parameters, "grad", None)
    try:
        yield
    finally:
        if before is None:
            objects.assign_all(parameters, "grad", None)
        else:
            objects.assign(parameters, "grad", before)
