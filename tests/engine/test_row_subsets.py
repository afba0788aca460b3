"""The engine's decoding weights against least squares in numpy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codedgrad import codes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "no C++ compiler, although the engine was built"
    out = tmp_path_factory.mktemp("row_subsets") / "row_subsets"
    sources = ["tests/engine/row_subsets.cpp", "csrc/ops/cpu/least_squares.cpp"]
    build = [compiler, "-std=c++17", "-O1", "-Icsrc", *sources, "-o", str(out)]
    subprocess.run(build, cwd=ROOT, check=True)
    return out


def solve(
    program: Path, b: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    data = [np.array([*b.shape, len(masks)]), b, masks]
    sent = b"".join(x.astype(np.float64).tobytes() for x in data)
    done = subprocess.run([str(program)], input=sent, capture_output=True, check=True)
    out = np.frombuffer(done.stdout).reshape(len(masks), len(b) + 1)
    return out[:, :-1], out[:, -1]


@pytest.mark.parametrize(
    "code",
    [
        codes.cyclic(1, stragglers=0),
        codes.cyclic(5, stragglers=0),
        codes.cyclic(7, stragglers=6),
        codes.cyclic(12, stragglers=3),
        codes.cyclic(256, stragglers=27),
    ],
    ids=lambda c: c.describe(),
)
def test_weights_are_those_of_the_arrival_set(program: Path, code: codes.Code) -> None:
    random = np.random.default_rng(5)
    n, s = code.workers, code.tolerance()
    counts = [min(m, n) for m in (0, 1, s, s, s, s + 1)]
    masks = np.ones((len(counts), n), bool)
    for mask, missing in zip(masks, counts, strict=True):
        mask[random.choice(n, missing, replace=False)] = False
    b = code.matrix()
    weights, residual = solve(program, b, masks)
    assert not weights[~masks].any()
    lacks = np.abs(1.0 - weights @ b).max(axis=1)
    np.testing.assert_allclose(residual, lacks, atol=1e-8)
    for mask, missing, left in zip(masks, counts, residual, strict=True):
        assert (left < 1e-8) == code.decode(mask).covers == (missing <= s)


def test_a_matrix_of_general_rows(program: Path) -> None:
    random = np.random.default_rng(6)
    b = np.vstack([np.eye(4), random.integers(-2, 3, (5, 4)), np.ones((1, 4))])
    masks = random.random((200, 10)) < 0.5
    masks[0] = False
    weights, residual = solve(program, b, masks)
    assert not weights[~masks].any()
    for mask, left in zip(masks, residual, strict=True):
        ones = np.ones(4)
        want = np.linalg.lstsq(b[mask].T, ones, rcond=1e-10)[0] if mask.any() else []
        lacks = np.abs(ones - np.asarray(want) @ b[mask]).max() if mask.any() else 1.0
        assert (left < 1e-8) == (lacks < 1e-8)
