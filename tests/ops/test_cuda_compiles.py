"""The CUDA sources compile, also on a machine without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles(source: Path, arch: str, tmp_path: Path) -> None:
    out = tmp_path / "kernel.cubin"
    build = ["nvcc", "-std=c++17", "-O3", f"-arch={arch}", "-Icsrc", "-cubin"]
    done = subprocess.run(
        [*build, str(source), "-o", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert out.stat().st_size > 0
