"""Read logs: .npz, CSV, operation records, Chrome traces and codedgrad's recordings."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from array import array
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError, missing_extra
from codedgrad.lab.traces.log import Log, from_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES = 1 << 30  # bytes of times held in memory; a larger log is refused
_ARRAYS = ("compute", "workers", "segment", "meta")
_COLUMNS = ("step", "worker", "seconds")


def read(path: str | Path) -> Log:
    """Read a log; the name of the file decides how.

    .npz: an array `compute` [steps, workers] in seconds, and optionally `workers`,
    `segment` and `meta` (JSON).
    .csv, .csv.gz: columns step, worker and seconds; others are ignored.
    .parquet: operation records as ByteDance publishes them.
    .json, .json.gz: a Chrome trace, in which a worker is a process and `args.step` of
    an event is its step.
    A folder: the recordings of a codedgrad run, one CSV per worker.

    Raises:
        ConfigError: the log cannot be used; the message says why, where, and the
            remedy.
        EnvironmentSetupError: a parquet file cannot be read without pyarrow.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ConfigError(f"{path} is empty; wanted a log")
    kinds: dict[str, Callable[[Path], Log]] = {
        ".npz": _read_npz,
        ".csv": _read_csv,
        ".csv.gz": _read_csv,
        ".parquet": _read_parquet,
        ".json": _read_chrome,
        ".json.gz": _read_chrome,
    }
    for suffix, reader in kinds.items():
        if path.name.endswith(suffix):
            return reader(path)
    raise ConfigError(f"{path}: unknown kind of log; known are {', '.join(kinds)}")


def _read_npz(path: Path) -> Log:
    _refuse_large(path, _npz_bytes(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive if k in _ARRAYS}
            held = sorted(archive)
        meta = json.loads(str(arrays.get("meta", "{}")))
        times = np.asarray(arrays.get("compute", 0.0), np.float64)
    except ValueError as error:
        reason = "it holds pickled objects, which are refused: they may run any code"
        if "pickle" not in str(error).lower():
            reason = str(error)
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise _damaged(path, error) from error
    if "compute" not in arrays:
        raise ConfigError(
            f"{path} holds {held}, wanted an array `compute` [steps, workers], seconds"
        )
    names, segment = arrays.get("workers"), arrays.get("segment")
    workers = () if names is None else tuple(str(n) for n in names)
    return Log(times, workers, meta, segment, str(path))


def _npz_bytes(path: Path) -> int:
    """Return the bytes that the archive says it unpacks to.

    Asking first makes it possible to refuse a zip bomb unread.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(
                f.file_size for f in archive.infolist() if "compute" in f.filename
            )
    except (OSError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} is damaged or cut short ({error}); copy it again from its source"
    )


def _refuse_large(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ConfigError(
            f"{path} holds {size / 2**30:.1f} GiB of times, more than the "
            f"{MAX_BYTES / 2**30:.0f} GiB that are read; cut it, e.g. to 10,000 steps"
        )


def _open_text(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8")
    return path.open(encoding="utf-8", newline="")


def _read_csv(path: Path) -> Log:
    return _collect(_csv_rows(path), str(path))


def _read_folder(path: Path) -> Log:
    parts = sorted(path.glob("worker-*.csv"))
    if not parts:
        raise ConfigError(
            f"{path} holds no worker-*.csv; wanted the folder of "
            f"CodedGradient(..., log=FOLDER)"
        )
    meta = {"source": "recorded by codedgrad", "unit": "seconds of compute"}
    meta["missing"] = "late"
    rows = (row for part in parts for row in _csv_rows(part))
    return _collect(rows, str(path), meta)


def _collect(
    rows: Iterator[tuple[int, str, float]],
    source: str,
    meta: dict[str, Any] | None = None,
) -> Log:
    """Make a log of the rows; memory holds numbers only, at most MAX_BYTES of them."""
    steps, seconds = array("q"), array("d")
    workers: list[str] = []
    names: dict[str, str] = {}
    for step, worker, time_s in rows:
        steps.append(step)
        seconds.append(time_s)
        workers.append(names.setdefault(worker, worker))
        if 24 * len(steps) > MAX_BYTES:
            _refuse_large(Path(source), 24 * len(steps))
    if not steps:
        raise ConfigError(f"{source} has a header and no rows; wanted a log")
    return from_rows(np.array(steps), workers, np.array(seconds), source, meta)


def _csv_rows(path: Path) -> Iterator[tuple[int, str, float]]:
    try:
        with _open_text(path) as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            missing = [c for c in _COLUMNS if c not in header]
            if missing:
                raise ConfigError(
                    f"{path}, line 1: columns {header}, lacks {missing}; wanted a "
                    f"header with step, worker, seconds"
                )
            at = [header.index(c) for c in _COLUMNS]
            for row in rows:
                if not row:
                    continue
                try:
                    step, worker, time_s = (row[i].strip() for i in at)
                    yield int(step), worker, float(time_s)
                except (ValueError, IndexError) as error:
                    raise ConfigError(
                        f"{path}, line {rows.line_num}: {','.join(row)!r}: {error}; "
                        f"wanted an integer step, a worker, seconds"
                    ) from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise _damaged(path, error) from error


def _read_parquet(path: Path) -> Log:
    """Read the records of ByteDance's StragglerAnalysis, one per operation.

    A column is a data-parallel replica. Its time runs from the start of the first
    forward to the end of the last backward, without the waiting for other replicas.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_extra("parquet", error) from None
    try:
        table = parquet.read_table(path).to_pydict()
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    names = {
        "step": ("step", "step_id", "iteration"),
        "worker": ("dp_rank", "dp", "worker"),
        "operation": ("op", "operation", "name", "type"),
        "start": ("start", "start_ts", "start_time", "ts"),
        "duration": ("duration", "dur", "duration_us"),
    }
    found = {k: next((c for c in v if c in table), None) for k, v in names.items()}
    if missing := [f"{k} ({' or '.join(names[k])})" for k, c in found.items() if not c]:
        raise ConfigError(
            f"{path} has the columns {sorted(table)}, lacks {', '.join(missing)}"
        )
    columns = {k: table[str(c)] for k, c in found.items()}
    scale = 1e-6 if found["duration"] != "duration" else 1.0
    return _from_operations(columns, scale, str(path))


def _from_operations(columns: dict[str, list[Any]], scale: float, source: str) -> Log:
    begin: dict[tuple[int, str], float] = {}
    end: dict[tuple[int, str], float] = {}
    rows = zip(*(columns[k] for k in ("step", "worker", "operation", "start",
                                      "duration")), strict=True)  # fmt: skip
    for step, worker, operation, start, duration in rows:
        if not any(word in str(operation).lower() for word in ("forward", "backward")):
            continue
        key = int(step), str(worker)
        begin[key] = min(begin.get(key, np.inf), float(start))
        end[key] = max(end.get(key, -np.inf), float(start) + float(duration))
    if not begin:
        raise ConfigError(
            f"{source} has no operation with `forward` or `backward` in its name"
        )
    keys = sorted(begin)
    return from_rows(
        [k[0] for k in keys],
        [k[1] for k in keys],
        [scale * (end[k] - begin[k]) for k in keys],
        source,
    )


def _read_chrome(path: Path) -> Log:
    """Read the complete events ("ph": "X") of a Chrome trace that have `args.step`.

    If any of them is named COMPUTE, only those are used. A worker is a process.
    """
    _refuse_large(path, path.stat().st_size)
    try:
        with _open_text(path) as file:
            data = json.load(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, error) from error
    events = data.get("traceEvents", []) if isinstance(data, dict) else data
    marked = [
        e
        for e in events
        if e.get("ph") == "X" and isinstance(e.get("args", {}).get("step"), int)
    ]
    compute = [e for e in marked if str(e.get("name", "")).upper() == "COMPUTE"]
    total: dict[tuple[int, str], float] = {}
    for event in compute or marked:
        key = event["args"]["step"], str(event.get("pid", 0))
        total[key] = total.get(key, 0.0) + 1e-6 * float(event["dur"])
    if not total:
        raise ConfigError(
            f"{path} has no complete event (ph X) with an integer args.step; a step's "
            f"compute must be marked, e.g. name COMPUTE with args {{step: 3}}"
        )
    keys = sorted(total)
    return from_rows(
        [k[0] for k in keys], [k[1] for k in keys], [total[k] for k in keys], str(path)
    )
