"""`codedgrad decoder record` and `eval`, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codedgrad.__main__ import main
from codedgrad.lab.decoders import evaluate as judge
from codedgrad.lab.decoders import load

pytest.importorskip("sklearn")
NAMES = [*(decoder.name for decoder in judge.decoders(1)), "oracle"]
SCRIPT = """
import torch

def make():
    x = torch.randn(200, 5)
    return torch.nn.Linear(5, 1), x, x[:, :1] * 3, torch.nn.functional.mse_loss

def with_classes():
    return (*make(), [i % 4 for i in range(200)])

def unused():
    model = torch.nn.Module()
    model.a, model.b = torch.nn.Linear(5, 1), torch.nn.Linear(5, 1)
    model.forward = lambda x: model.a(x)
    return (model, *make()[1:])

def explodes():
    model, x, y, loss = make()
    return model, x, y, lambda out, y: loss(out, y) / 0.0

def big():
    model, x, y, loss = make()
    return model, x, y, lambda out, y: 1e6 * loss(out, y)

def wrong():
    return 7

def short():
    model, x, y, loss = make()
    return model, x, y[:3], loss

number = 3
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    return path


def record(*arguments: object) -> int:
    return main(["decoder", "record", *map(str, arguments)])


def evaluate(*arguments: object) -> int:
    return main(["decoder", "eval", *map(str, arguments)])


@pytest.mark.parametrize("partition", ["fresh", "fixed", "classes", "full"])
def test_record_and_eval(
    tmp_path: Path, partition: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.npz"
    small = ("--shards", 4, "--steps", 12, "--batch", 8, "--micro", 2)
    options = (*small, "--population", "--dtype", "float16", "--partition", partition)
    assert record("wine", "--out", out, *options) == 0
    with np.load(out) as file:
        assert file["grads"].shape == (12, 8, 683)
        assert file["grads"].dtype == np.float16
        assert file["tensor_sizes"].tolist() == [520, 40, 120, 3]
    capsys.readouterr()
    assert evaluate(out, "--missing", 2, "--pattern", "bursty", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(data["decoders"]) == sorted(NAMES)
    for name in NAMES:
        figures = data["decoders"][name]
        wanted = {"mean", "median", "geomean_ratio", "population"}
        if name != "oracle":
            wanted |= {"calibration", "exceeded"}
        assert wanted <= set(figures)
        assert all(np.isfinite(value) for value in figures.values())
    assert data["decoders"]["rescale"]["geomean_ratio"] == pytest.approx(1.0)
    assert data["decoders"]["oracle"]["geomean_ratio"] < 1.0
    assert data["missing"] == 2
    assert np.isfinite(data["batch_population"])
    assert evaluate(out, "--missing", 1, "--delay", 3) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES)


def test_the_same_seed_the_same_recording(tmp_path: Path) -> None:
    small = ("wine", "--shards", 2, "--steps", 3, "--batch", 8)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert record(*small, "--seed", seed, "--out", tmp_path / name) == 0
    a, b, c = (load(tmp_path / name).grads for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_somebody_else_s_model(tmp_path: Path, script: Path) -> None:
    small = ("--shards", 4, "--steps", 6, "--batch", 8, "--lr", 0.01)
    for name in ("make", "with_classes", "unused"):
        out = tmp_path / f"{name}.npz"
        options = (*small, "--partition", "classes", "--adam")
        assert record(f"{script}:{name}", "--out", out, *options) == 0
        assert evaluate(out, "--missing", 1) == 0
    unused = load(tmp_path / "unused.npz")
    assert unused.sizes.tolist() == [5, 1, 5, 1]
    assert not unused.grads[..., 6:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no task 'nothing'"),
        (["absent.py:make"], "there is no script"),
        (["SCRIPT:absent"], "no function 'absent'"),
        (["SCRIPT:number"], "no function 'number'"),
        (["SCRIPT:wrong"], "returned int"),
        (["SCRIPT:short"], "equal length"),
        (["SCRIPT:explodes", "--batch", "8"], "NaN or Inf"),
        (["SCRIPT:big", "--batch", "8", "--steps", "1", "--dtype", "float16"],
         "overflow; use float32"),
        (["wine", "--batch", "40"], "fewer than the 320"),
        (["wine", "--batch", "2", "--micro", "4"], "4 micro-batches"),
        (["wine", "--shards", "0"], "shards must be at least 1"),
        (["wine", "--steps", "0"], "steps must be at least 1"),
        (["wine", "--lr", "-1"], "--lr"),
    ],
)  # fmt: skip
def test_bad_recording(
    tmp_path: Path,
    script: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [a.replace("SCRIPT", str(script)) for a in arguments]
    assert record(*arguments, "--out", tmp_path / "out.npz") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_bad_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grads = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", grads=grads, tensor_sizes=np.array([4]))
    for arguments, message in (
        (("a.npz", "--missing", 3), "missing must be 1 to 2"),
        (("a.npz", "--missing", 1, "--delay", 0), "delay"),
        (("b.npz", "--missing", 1), "cannot read"),
    ):
        file, *rest = arguments
        assert evaluate(tmp_path / str(file), *rest) == 2
        assert message in capsys.readouterr().err
    assert record("wine", "--out", tmp_path / "no" / "such.npz") == 2
    assert "no folder" in capsys.readouterr().err
