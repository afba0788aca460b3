"""The examples of docs/add-a-*.md are complete: they run as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab.decoders.conftest import case

from codedgrad import codes

ROOT = Path(__file__).parents[2]


def examples(page: str) -> dict[str, str]:
    """The blocks of a page that follow a line with the path of a file alone."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", text, flags=re.M | re.S)
    assert found
    return dict(found)


def run(text: str, **names: Any) -> dict[str, Any]:
    exec(compile(text, "example", "exec"), names)
    return names


def test_the_code_passes_the_test_that_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = examples("add-a-code.md")
    ring = run(files["codedgrad/codes/ring.py"])["ring"]
    monkeypatch.setattr(codes, "ring", ring, raising=False)
    test = run(files["tests/codes/test_families.py"], codes=codes, pytest=pytest)
    for n in (2, 3, 8):
        test["test_ring_bears_the_loss_of_any_worker"](n)
    assert ring(1).tolerance() == 0


def test_the_decoder_does_what_its_docstring_says() -> None:
    files = examples("add-a-decoder.md")
    halfway = run(files["codedgrad/lab/decoders/halfway.py"])["Halfway"]
    arrivals, memory, _ = case()
    weight = arrivals.weight * arrivals.fraction
    total = weight @ np.nan_to_num(arrivals.rows)
    want = total + (1 - weight.sum()) * (total / weight.sum() + memory.average) / 2
    got = halfway(3).estimate(arrivals, memory)
    np.testing.assert_allclose(got.gradient, want, rtol=1e-9, atol=1e-12)


def test_the_transport_compiles(tmp_path: Path) -> None:
    files = examples("add-a-transport.md")
    sources = [name for name in files if name.startswith("csrc/")]
    for name in sources:
        path = tmp_path / Path(name).relative_to("csrc")
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[name])
    (source,) = (name for name in sources if name.endswith(".cpp"))
    command = ["c++", "-std=c++17", "-Wall", "-Werror", "-fsyntax-only"]
    command += [f"-I{tmp_path}", f"-I{ROOT / 'csrc'}"]
    command += [str(tmp_path / Path(source).relative_to("csrc"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
