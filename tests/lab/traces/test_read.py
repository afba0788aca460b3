"""Logs from files: each kind, and everything that may be wrong with one."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad.lab import traces
from codedgrad.monitor import recorder as record
from codedgrad.monitor.report import StepReport

SHARED = Path(__file__).parents[4] / "shared" / "traces"
MODULE = sys.modules["codedgrad.lab.traces.read"]
TIMES = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]])


def test_npz_round_trip(tmp_path: Path) -> None:
    log = traces.Log(TIMES, ("a", "b", "c"), {"source": "here"}, np.array([0, 1]))
    log.save(tmp_path / "log.npz")
    back = traces.read(tmp_path / "log.npz")
    np.testing.assert_array_equal(back.compute, TIMES)
    assert back.workers == ("a", "b", "c")
    assert back.meta == {"source": "here"}
    assert back.segments().tolist() == [0, 1]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_csv_in_any_order_with_other_columns(tmp_path: Path, name: str) -> None:
    text = "worker,step,host,seconds\n"
    text += "10,7,x,6\n0,3,x,1\n2,3,x,2\n10,3,x,3\n0,7,x,4\n\n"
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.write(text)
    log = traces.read(tmp_path / name)
    assert log.workers == ("0", "2", "10")  # numbers in their own order
    np.testing.assert_array_equal(log.compute, TIMES)


def test_chrome_trace(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "name": "COMPUTE", "pid": w, "dur": 1e6 * TIMES[s, w] / 2,
         "ts": 0, "args": {"step": s}}
        for s in (0, 1) for w in (0, 1, 2) for _half in (0, 1)
        if not np.isnan(TIMES[s, w])
    ]  # fmt: skip
    events += [{"ph": "X", "name": "WAIT", "pid": 0, "dur": 5e9, "args": {"step": 0}}]
    events += [{"ph": "M", "name": "process_name", "pid": 0}]
    for data in (events, {"traceEvents": events}):
        (tmp_path / "trace.json").write_text(json.dumps(data))
        np.testing.assert_allclose(traces.read(tmp_path / "trace.json").compute, TIMES)


def test_parquet_operations(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = {
        "step": [0, 0, 0, 0, 0],
        "dp_rank": [0, 0, 1, 1, 1],
        "operation": ["forward", "backward", "forward", "backward", "reduce-scatter"],
        "start": [0.0, 1.0, 0.5, 1.0, 3.0],
        "duration": [1.0, 2.0, 0.25, 0.5, 9.0],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "ops.parquet")
    log = traces.read(tmp_path / "ops.parquet")
    np.testing.assert_allclose(log.compute, [[3.0, 1.0]])
    parquet.write_table(pyarrow.table({"step": [1]}), tmp_path / "no.parquet")
    with pytest.raises(ConfigError, match="lacks worker"):
        traces.read(tmp_path / "no.parquet")


def report(step: int, compute_s: float, *, forwarded: bool = False) -> StepReport:
    flags = {"abandoned": False, "fast_forwarded": forwarded, "redundant_passes": 0}
    return StepReport(
        step=step, step_s=compute_s, compute_s=compute_s, wait_s=0.0, loss=1.0,
        backpressure_s=0.0, arrivals_s={0: 0.5}, **flags,
    )  # fmt: skip


def test_what_a_run_recorded(tmp_path: Path) -> None:
    for worker in (0, 1):
        recorder = record.Recorder(tmp_path / "log", worker)
        for step in range(300):
            forwarded = (step, worker) == (5, 1)
            done = 0.5 if step == 7 else 1.0
            recorder.step(report(step, 1.0 + worker, forwarded=forwarded), done)
        recorder.step(report(300, 4.0), 0.0)  # stopped before anything was done
        recorder.close()
    log = traces.read(tmp_path / "log")
    assert log.compute.shape == (301, 2)
    assert np.isnan(log.compute[5, 1])
    assert log.compute[7].tolist() == [2.0, 4.0]
    assert log.compute[300].tolist() == [4.0, 4.0]
    with pytest.raises(ConfigError, match="holds the log of another run"):
        record.Recorder(tmp_path / "log", 0)


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.txt", "1", "unknown kind of log; known are .npz, .csv"),
        ("x.csv", "", "is empty"),
        ("x.csv", "step,worker,seconds\n", "a header and no rows"),
        ("x.csv", "step,worker\n1,2\n", r"line 1.*lacks \['seconds'\]"),
        ("x.csv", "step,worker,seconds\n0,0,1\n1,0,abc\n", "line 3: '1,0,abc'"),
        ("x.csv", "step,worker,seconds\n0,0\n", "line 2"),
        ("x.csv", "step,worker,seconds\n0,a,1\n0,a,2\n", "worker a comes 2 times"),
        ("x.csv", "step,worker,seconds\n0,a,0\n", "0.0 s in step 0 of worker a"),
        ("x.csv", "step,worker,seconds\n0,a,-1\n", "must be positive"),
        ("x.csv", "step,worker,seconds\n0,a,inf\n", "must be positive"),
        ("x.csv", "step,worker,seconds\n0,a,nan\n", "no worker took part"),
        ("x.csv", b"\xff\xfe\x00\x01", "damaged"),
        ("x.csv.gz", b"\x1f\x8b\x08\x00broken", "damaged"),
        ("x.npz", b"PK\x03\x04 cut short", "damaged or cut short"),
        ("x.json", "{", "damaged"),
        ("x.json", "[]", "no complete event"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes | str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        traces.read(write(tmp_path / name, data))


def test_bad_archives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted an array `compute`"):
        traces.read(npz(tmp_path / "a.npz", times=TIMES))
    with pytest.raises(ConfigError, match="pickled objects, which are refused"):
        traces.read(npz(tmp_path / "b.npz", compute=np.array([{}], object)))
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        traces.read(npz(tmp_path / "c.npz", compute=np.ones(3)))
    with pytest.raises(ConfigError, match="shape"):
        traces.read(npz(tmp_path / "d.npz", compute=np.ones((0, 4))))
    whole = npz(tmp_path / "e.npz", compute=np.random.rand(100, 100)).read_bytes()  # noqa: NPY002
    with pytest.raises(ConfigError, match="damaged or cut short"):
        traces.read(write(tmp_path / "f.npz", whole[: len(whole) // 2]))
    with pytest.raises(ConfigError, match="names for 3 workers"):
        traces.read(npz(tmp_path / "g.npz", compute=TIMES, workers=["a"]))
    with pytest.raises(ConfigError, match="no such file"):
        traces.read(tmp_path / "none.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no worker-\*\.csv"):
        traces.read(tmp_path / "empty")


def test_a_huge_log_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("compute.npy", bytes(4 << 20))
    monkeypatch.setattr(MODULE, "MAX_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match=r"GiB of times, more than"):
        traces.read(path)
    rows = "".join(f"{s},0,1\n" for s in range(60_000))
    with pytest.raises(ConfigError, match="more than"):
        traces.read(write(tmp_path / "long.csv", "step,worker,seconds\n" + rows))


def test_fewer_workers_than_asked_for() -> None:
    log = traces.Log(np.ones((3, 4)))
    assert log.take(3).size == 3
    with pytest.raises(ConfigError, match="has 4 workers, 9 were asked for; sample"):
        log.take(9)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published logs are not here")
def test_published_logs_are_read_and_their_figures_agree() -> None:
    from codedgrad.lab.traces.statistics import describe

    stats = json.loads((SHARED / "stats.json").read_text())
    checked = 0
    for path in sorted(SHARED.glob("*.npz")):
        with np.load(path) as archive:
            if "compute" not in archive:
                continue
        found = describe(traces.read(path))
        want = stats[path.stem]
        for key, other in (("p90", "p90"), ("p99", "p99")):
            if other in want:
                assert found[key] == pytest.approx(want[other], rel=0.02), path.name
                checked += 1
    assert checked >= 20
