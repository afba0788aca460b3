"""What happened in a step, as one worker saw it, and where each figure goes.

`StepReport` holds the figures of a step. `COLUMNS` names for each of them its places:
the log, the metrics for Prometheus, the scalars for TensorBoard, the page of
`codedgrad report`, the saved record. Every writer and reader goes by this table, so a
new figure takes a field, a line of the table, and the code that computes it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from codedgrad.monitor.columns import Column, Metric


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step on one worker. Times are in seconds.

    The order of the fields is the order of the columns in the log.

    Attributes:
        step: The number of the step.
        begin_s: The time of the system's clock at which `backward` began.
        step_s: The duration of `backward`.
        compute_s: The part of `step_s` in the worker's own required passes, until the
            worker abandoned them if it did.
        send_s: The part of `compute_s` and `wait_s` in which rows were handed to the
            engine.
        help_s: The part of `wait_s` in redundant passes.
        wait_s: The time from the end of the own passes until the step was decoded;
            redundant passes are included.
        backpressure_s: The time before the own passes in which the worker waited
            because another one lagged by a whole window.
        decode_s: The time in which the engine's thread summed this worker's slices;
            that runs beside everything else.
        apply_s: The time since the previous `backward`: the optimizer, the schedule
            and whatever else the script does.
        redundant_passes: The number of passes for others that this worker began.
        abandoned: Whether the worker left a pass unfinished because it was not needed
            any more.
        fast_forwarded: Whether the step was decoded before this worker began it.
        loss: The mean loss of the batch.
        arrivals_s: The time from the start of `backward` until the own row of each
            worker arrived at this one, by worker. A worker is absent if its row did
            not arrive before the end of the step.
        settled: The number of own slices for which the worker took an estimate; it is
            0 in an exact session.
        refused: The number of workers whose rows held NaN or Inf and were refused at
            this worker, counted once per step.
        lost: The number of workers that were lost for good by the end of the step.
        missing: The share of the batch that the estimated slices lacked, on average.
        predicted_error: The relative squared error that the decoder predicted for the
            estimated slices, on average.
        predicted_noise: What these estimates were expected to add to the noise of the
            step, as a share of the batch's own sampling noise, on average over the
            slices for which it could be told; 0 if there is none. It can be negative.
        true_errors: Pairs of a step and the relative squared error of one estimate.
            They belong to estimates, mostly of earlier steps, whose late rows have all
            arrived since the last report.
    """

    step: int
    begin_s: float = 0.0
    step_s: float
    compute_s: float
    send_s: float = 0.0
    help_s: float = 0.0
    wait_s: float
    backpressure_s: float
    decode_s: float = 0.0
    apply_s: float = 0.0
    redundant_passes: int
    abandoned: bool
    fast_forwarded: bool
    loss: float
    arrivals_s: dict[int, float]
    settled: int = 0
    refused: int = 0
    lost: int = 0
    missing: float = 0.0
    predicted_error: float = 0.0
    predicted_noise: float = 0.0
    true_errors: tuple[tuple[int, float], ...] = ()


# The order of this table is the order of the metrics and of the page's columns.
COLUMNS: tuple[Column, ...] = (
    Column(
        "step",
        log="d",
        metrics=(Metric("steps", "Steps of this worker.", value=lambda _: 1.0),),
        saved=True,
    ),
    Column("begin_s", "s", log=".6f"),
    Column(
        "step_s",
        "s",
        log=".6g",
        metrics=(Metric("step_seconds", "Time in `backward`."),),
        tag="straggler/step_s",
        saved=True,
    ),
    Column(
        "compute_s",
        "s",
        log=".6g",
        metrics=(Metric("compute_seconds", "Time in the own required passes."),),
        page="compute",
        saved=True,
    ),
    Column("send_s", "s", log=".6g"),
    Column(
        "wait_s",
        "s",
        log=".6g",
        metrics=(Metric("wait_seconds", "Time from there until steps were decoded."),),
        tag="straggler/wait_s",
        page="wait",
        saved=True,
    ),
    Column(
        "help_s",
        "s",
        log=".6g",
        metrics=(Metric("help_seconds", "Time in redundant passes."),),
        page="help",
    ),
    Column(
        "backpressure_s",
        "s",
        log=".6g",
        metrics=(Metric("backpressure_seconds", "Time lost to a full window."),),
        tag="straggler/backpressure_s",
    ),
    Column(
        "decode_s",
        "s",
        log=".6g",
        metrics=(Metric("decode_seconds", "Time of the engine in summing slices."),),
        page="decode",
    ),
    Column("apply_s", "s", log=".6g", page="apply"),
    Column(
        "redundant_passes",
        log="d",
        metrics=(Metric("redundant_passes", "Passes begun for other workers."),),
        tag="straggler/redundant_passes",
        page="redundant",
    ),
    Column(
        "abandoned",
        log="d",
        metrics=(Metric("abandoned_passes", "Steps with an unfinished pass."),),
    ),
    Column(
        "fast_forwarded",
        log="d",
        metrics=(Metric("fast_forwarded_steps", "Steps decoded before the begin."),),
    ),
    Column(
        "loss",
        log=".6g",
        metrics=(Metric("loss", "Mean loss of the last batch.", kind="gauge"),),
        tag="train/loss",
        saved=True,
    ),
    Column(
        "arrivals_s",
        "s",
        kind="by worker",
        log=".6g",
        log_name="arrivals",
        tag="straggler/missing",
        saved=True,
    ),
    Column(
        "settled",
        metrics=(Metric("settled_slices", "Own slices that were estimated."),),
        tag="decoder/settled",
        of_estimates=True,
    ),
    Column(
        "refused",
        metrics=(Metric("refused_rows", "Rows that were refused for NaN or Inf."),),
    ),
    Column(
        "lost",
        metrics=(Metric("lost_workers", "Workers lost for good.", kind="gauge"),),
    ),
    Column("missing", tag="decoder/missing", of_estimates=True),
    Column(
        "predicted_error",
        metrics=(
            Metric(
                "predicted_error",
                "Predicted errors of the estimated slices, summed.",
                value=lambda report: report.settled * report.predicted_error,
            ),
        ),
        tag="decoder/predicted_error",
        of_estimates=True,
    ),
    Column(
        "predicted_noise",
        metrics=(
            Metric(
                "predicted_noise",
                "What estimates add to the batch's noise, as a share of it.",
                kind="gauge",
            ),
        ),
        tag="decoder/predicted_noise",
        of_estimates=True,
    ),
    Column(
        "true_errors",
        kind="by step",
        metrics=(
            Metric(
                "true_error",
                "True errors of the estimated slices, summed where known.",
                value=lambda report: sum(error for _, error in report.true_errors),
            ),
            Metric(
                "true_error_slices",
                "Estimated slices whose true error is known.",
                value=lambda report: len(report.true_errors),
            ),
        ),
        tag="decoder/true_error",
    ),
)


def _logged() -> tuple[Column, ...]:
    by_name = {column.name: column for column in COLUMNS}
    columns = (by_name[field.name] for field in fields(StepReport))
    return tuple(column for column in columns if column.log is not None)


LOGGED = _logged()  # the columns of the log, in the order of the fields
