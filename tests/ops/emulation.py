"""The CUDA kernels' Python module, compiled for the processor; see emulated/."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pybind11

ROOT = Path(__file__).parent.parent.parent
_LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?)>>>\(", re.DOTALL)
_DYNAMIC = re.compile(r"extern __shared__ [^;]*\bunsigned char (\w+)\[\];")


def as_cpp(source: str) -> str:
    """CUDA's own syntax in calls of `emulated`."""
    source = _DYNAMIC.sub(r"auto* \1 = emulated::shared_memory();", source)
    return _LAUNCH.sub(r"emulated::launch(\2)(\1, ", source)


@functools.cache
def module() -> Any:
    """The module; it is compiled once for all processes that have the same sources."""
    sources = [*(ROOT / "csrc/ops").rglob("*"), *ROOT.glob("tests/ops/emulated/*")]
    sources += [ROOT / "csrc/bindings/ops_cuda.cpp", Path(__file__)]
    known = hashlib.sha256(sysconfig.get_config_var("EXT_SUFFIX").encode())
    for source in sorted(s for s in sources if s.is_file()):
        known.update(source.read_bytes())
    folder = ROOT / "build" / "emulated" / known.hexdigest()[:16]
    made = folder / f"_ops_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            build(Path(own)).replace(made)
    spec = importlib.util.spec_from_file_location("_ops_cuda", made)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def build(folder: Path) -> Path:
    """Compile into `folder`; returns the module's file."""
    sources = []
    for kernel in sorted((ROOT / "csrc/ops/cuda").glob("*.cu")):
        sources.append(str(folder / f"{kernel.stem}.cpp"))
        Path(sources[-1]).write_text(as_cpp(kernel.read_text()))
    made = folder / f"_ops_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [
        ROOT / "tests/ops/emulated",
        ROOT / "csrc",
        pybind11.get_include(),
        sysconfig.get_paths()["include"],
    ]
    command = ["c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
    command += ["-fvisibility=hidden", *(f"-I{i}" for i in includes)]
    bindings = str(ROOT / "csrc/bindings/ops_cuda.cpp")
    subprocess.run([*command, *sources, bindings, "-o", str(made)], check=True)
    return made
