#!/usr/bin/env bash
# Everything we test; installs what is missing first. CI runs exactly this.
#
#   bash tests/run.sh            # all of it
#   bash tests/run.sh unit       # linters and unit tests, under two minutes
#   bash tests/run.sh slow       # sanitizers, failures, a wheel under two MPIs
#   bash tests/run.sh parallel   # the multi-worker tests (WORKERS="1 2 3")
#   bash tests/run.sh integrations   # Lightning, Hugging Face, Accelerate
#   bash tests/run.sh horovod    # Horovod and codedgrad in one process
#   bash tests/run.sh bench      # the benchmarks at toy size
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh dev examples || exit 1
# shellcheck source=launch/env.sh
. launch/env.sh
unset CODEDGRAD_FAULTS
passed=0
failed=0
scratch=$(mktemp -d)
log=$(mktemp -p "$scratch")
sides=()
# Hundreds of processes start here; without bytecode each compiles codedgrad again.
bytecode() {
  find codedgrad tests benchmarks examples launch -name __pycache__ -prune "$@"
}
unwanted=${PYTHONDONTWRITEBYTECODE:-}
unset PYTHONDONTWRITEBYTECODE
trap 'rm -rf "$scratch"; [ -z "$unwanted" ] || bytecode -exec rm -rf {} +' EXIT

# check NAME COMMAND...: one test.
check() {
  local name=$1 begin=$SECONDS
  shift
  if "$@" >"$log" 2>&1; then
    passed=$((passed + 1))
    echo "ok      $name, $((SECONDS - begin)) s"
  else
    failed=$((failed + 1))
    echo "FAILED  $name: $*"
    tail -n 200 "$log"
  fi
}

# pytests NAME COMMAND...: a pytest run; its own counts are added.
pytests() {
  local name=$1 status good bad begin=$SECONDS
  shift
  "$@" >"$log" 2>&1
  status=$?
  good=$(grep -aoE '[0-9]+ passed' "$log" | tail -n 1 | cut -d' ' -f1)
  bad=$(grep -aoE '[0-9]+ (failed|errors?)' "$log" | awk '{s += $1} END {print s + 0}')
  # Ended without a report: a crash or a time-out counts as one failure.
  if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  grep -aE '^SKIPPED' "$log"
  passed=$((passed + ${good:-0}))
  failed=$((failed + bad))
  echo "$([ "$bad" = 0 ] && echo 'ok    ' || echo 'FAILED')  $name: ${good:-0} passed, $bad failed, $((SECONDS - begin)) s"
  if [ "$bad" != 0 ]; then tail -n 400 "$log"; fi
}

mpi() { # N COMMAND...: a bounded run; a hang prints stacks first, see conftest.py
  local n=$1
  shift
  timeout --kill-after=20 "${LIMIT:-900}" bash launch/mpirun.sh -n "$n" "$@"
}

beside() { # FUNCTION...: checks in the background; see `joined`
  local folder
  folder=$(mktemp -d -p "$scratch")
  (
    log=$folder/log
    passed=0
    failed=0
    "$@"
    echo "$passed $failed" >"$folder/counts"
  ) >"$folder/text" 2>&1 &
  sides+=("$! $folder")
}

joined() { # waits for what `beside` has started, and reports it
  local side good bad
  for side in "${sides[@]}"; do
    wait "${side%% *}"
    cat "${side#* }/text"
    # Without counts the group itself has failed.
    read -r good bad <"${side#* }/counts" || { good=0 bad=1; }
    passed=$((passed + good))
    failed=$((failed + bad))
  done
  sides=()
}

pytest_by_2() { # PATH...: tests in two processes
  "$CG_PYTHON" -m pytest -q --color=no -p no:cacheprovider -n 2 "$@"
}

parse() { # `bash -n` looks at its first file only
  local file
  for file in "$@"; do bash -n "$file" || return 1; done
}

# For the test that looks at the HTML report; never needed to use codedgrad.
chromium() {
  command -v chromium >/dev/null || command -v google-chrome >/dev/null && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
  for _ in 1 2; do # a mirror may fail once
    if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y chromium; } \
      >"$log" 2>&1; then return; fi
  done
  echo "Chromium was not installed: $(tail -n 1 "$log")"
}

# What compiles for minutes runs beside the tests, as far as they leave a core idle.
compile_beside() {
  mpich_log=$scratch/mpich
  nice -n 19 bash launch/build_horovod.sh >/dev/null 2>&1 &
  building=$!
  "$CG_PYTHON" -m pytest -q --color=no -p no:cacheprovider tests/mpich >"$mpich_log" 2>&1 &
  mpich=$!
}

mpich_tests() { # those of `compile_beside`, or now
  if [ -z "${mpich:-}" ]; then
    "$CG_PYTHON" -m pytest -q --color=no -p no:cacheprovider tests/mpich
    return
  fi
  local status
  wait "$mpich"
  status=$?
  cat "$mpich_log"
  return "$status"
}

unit() {
  chromium
  check "ruff check" "$CG_PYTHON" -m ruff check .
  check "ruff format" "$CG_PYTHON" -m ruff format --check .
  check "mypy" "$CG_PYTHON" -m mypy
  # shellcheck disable=SC2046
  check "clang-format" clang-format --dry-run -Werror \
    $(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
  check "scripts parse" parse launch/*.sh launch/cluster/* benchmarks/*.sh \
    tests/run.sh .ci/run
  pytests "unit tests" pytest_by_2 --dist worksteal tests \
    --ignore=tests/parallel --ignore=tests/horovod --ignore=tests/failures \
    --ignore=tests/integrations --ignore=tests/examples \
    --ignore=tests/mpich --ignore=tests/engine/test_stress.py \
    --ignore=tests/sockets/test_jobs.py
}

slow() { # unit tests that build or start something first
  pytests "engine under sanitizers" pytest_by_2 tests/engine/test_stress.py
  pytests "failures" pytest_by_2 tests/failures
  pytests "jobs over sockets" "$CG_PYTHON" -m pytest -q --color=no -p no:cacheprovider \
    tests/sockets/test_jobs.py
  pytests "examples" "$CG_PYTHON" -m pytest -q --color=no -p no:cacheprovider tests/examples
  pytests "wheel, MPICH" mpich_tests
}

one_worker() { # processes alone, without a launcher: two at a time
  pytests "1 worker" timeout --kill-after=20 900 nice -n 5 "$CG_PYTHON" -m pytest -q \
    --color=no -p no:cacheprovider -n 2 tests/parallel
}

parallel() {
  local n all=tests/parallel by_sockets=()
  # Without a list of numbers, 2 workers run these over sockets, and 3 by MPI.
  [ -n "${WORKERS:-}" ] || by_sockets=(--ignore-glob='*/test_channel.py'
    --ignore-glob='*/test_collectives.py' --ignore-glob='*/test_values.py'
    --ignore-glob='*/test_state.py')
  for n in ${WORKERS:-1 2}; do
    if [ "$n" = 1 ]; then
      beside one_worker # two that wait for one another leave half of two cores idle
    else
      pytests "$n workers" mpi "$n" "$CG_PYTHON" -m pytest -q --color=no \
        -p no:cacheprovider $all "${by_sockets[@]}"
    fi
  done
  joined
  [ -n "${WORKERS:-}" ] && return
  pytests "2 workers over sockets, the rest" timeout --kill-after=20 900 \
    "$CG_PYTHON" -m codedgrad run -n 2 --transport socket -- -m pytest -q --color=no \
    -p no:cacheprovider $all/test_{channel,collectives,values,state}.py
  # More workers than cores take many minutes: what depends on their number.
  pytests "3 workers, most tests" mpi 3 "$CG_PYTHON" -m pytest -q --color=no \
    -p no:cacheprovider $all --ignore-glob='*/test_device*.py' \
    --ignore-glob='*/test_wire.py' --ignore-glob='*/test_waits.py' \
    --ignore-glob='*/test_evaluate.py' --ignore-glob='*/test_hvd_suite_*.py' \
    --ignore-glob='*/test_loader.py' --ignore-glob='*/test_exported.py' \
    --ignore-glob='*/test_stragglers.py' --ignore-glob='*/test_link.py' \
    --ignore-glob='*/test_many_models.py' --ignore-glob='*/test_features.py' \
    --ignore-glob='*/test_dropin_uses.py' --ignore-glob='*/test_dropin_copies.py'
  pytests "5 workers, some tests" mpi 5 "$CG_PYTHON" -m pytest -q --color=no \
    -p no:cacheprovider $all/test_{evaluate,same_bits,whole_pass,loss_weights,values,watch}.py
}

refusals() {
  pytests "frameworks, 1 worker" "$CG_PYTHON" -m pytest -q --color=no \
    -p no:cacheprovider tests/integrations/test_refusals.py
}

integrations() {
  beside refusals
  pytests "frameworks, 2 workers" mpi 2 "$CG_PYTHON" -m pytest -q --color=no \
    -p no:cacheprovider tests/integrations --ignore-glob='*/test_refusals.py'
  joined
}

horovod() {
  # The second run finds Horovod installed, or says why it cannot be.
  [ -z "${building:-}" ] || wait "$building"
  check "build Horovod" bash launch/build_horovod.sh
  pytests "Horovod" "$CG_PYTHON" -m pytest -q --color=no -p no:cacheprovider tests/horovod
}

# Toy sizes prove that a benchmark runs and writes, so three go at a time.
bench_alone() { # OUT: of one process
  local out=$1
  check "bench_scaling pass" "$CG_PYTHON" benchmarks/bench_scaling.py pass --toy \
    --out "$out/pass.json"
  check "bench_traces" "$CG_PYTHON" benchmarks/bench_traces.py --scaling-only --toy \
    --out "$out"
  check "bench_decoder" "$CG_PYTHON" benchmarks/bench_decoder.py --toy \
    --out "$out/decoder.json" --page "$out/decoder.md"
  check "fit_decoder" "$CG_PYTHON" benchmarks/fit_decoder.py --toy --out "$out/net.npz"
  check "bench_anytime" "$CG_PYTHON" benchmarks/bench_anytime.py --toy --out "$out"
  check "bench_time_to_loss" "$CG_PYTHON" benchmarks/bench_time_to_loss.py --toy \
    --out "$out"
  check "bench_inference" env OMP_NUM_THREADS=1 "$CG_PYTHON" \
    benchmarks/bench_inference.py --toy --tasks digits --work "$out/inference" \
    --out "$out/inference.json" --page "$out/inference.md"
  check "bench_kernels" mpi 1 "$CG_PYTHON" benchmarks/bench_kernels.py --toy \
    --out "$out/kernels.json"
}

bench_asleep() { # OUT: mostly waiting
  local out=$1
  check "bench_step sleep" mpi 4 "$CG_PYTHON" benchmarks/bench_step.py --toy \
    --task sleep --factors 1,8 --out "$out/sleep.json"
  check "bench_step overlap" mpi 2 "$CG_PYTHON" benchmarks/bench_step.py --toy \
    --horovod-aside \
    --task device --overlap both --wire bfloat16 --no-horovod --factors 1 \
    --batch-size 8 --out "$out/overlap.json"
  check "bench_stall" mpi 4 "$CG_PYTHON" benchmarks/bench_stall.py --toy \
    --out "$out/stall.json"
  check "bench_faults" mpi 4 "$CG_PYTHON" benchmarks/bench_faults.py --toy \
    --out "$out/faults.json"
  check "bench_killed" "$CG_PYTHON" benchmarks/bench_killed.py --toy
  check "validate_simulator" mpi 4 "$CG_PYTHON" benchmarks/validate_simulator.py --toy \
    --out "$out/simulator.json"
  check "bench_estimates steps" mpi 4 "$CG_PYTHON" benchmarks/bench_estimates.py --toy \
    --part steps --out "$out/estimates-steps.json"
}

bench_busy() { # OUT
  local out=$1
  check "bench_exchange" mpi 2 "$CG_PYTHON" benchmarks/bench_exchange.py --toy \
    --out "$out/exchange.json"
  check "bench_step digits" mpi 2 "$CG_PYTHON" benchmarks/bench_step.py --toy \
    --task digits --factors 1 --out "$out/digits.json"
  check "bench_overhead" mpi 2 "$CG_PYTHON" benchmarks/bench_overhead.py --toy \
    --out "$out/overhead.json"
  check "bench_data" mpi 2 "$CG_PYTHON" benchmarks/bench_data.py --toy \
    --out "$out/data.json"
  check "bench_dropin" mpi 2 "$CG_PYTHON" benchmarks/bench_dropin.py --toy \
    --out "$out/dropin.json"
  check "bench_evaluate" mpi 2 "$CG_PYTHON" benchmarks/bench_evaluate.py --toy \
    --out "$out/evaluate.json"
  check "bench_serving" mpi 2 "$CG_PYTHON" benchmarks/bench_serving.py --toy \
    --out "$out/serving.json"
  check "calm steps" mpi 2 "$CG_PYTHON" launch/calm.py --turns 1 --out "$out/calm.json"
  check "bench_gpu" mpi 2 "$CG_PYTHON" benchmarks/bench_gpu.py --device cpu --toy \
    --out "$out/gpu.json"
  check "bench_noise" mpi 4 "$CG_PYTHON" benchmarks/bench_noise.py --toy \
    --out "$out/noise.json"
  check "bench_estimates choose" mpi 4 "$CG_PYTHON" benchmarks/bench_estimates.py --toy \
    --part choose --out "$out/estimates-choose.json"
  check "bench_estimates learn" mpi 2 "$CG_PYTHON" benchmarks/bench_estimates.py --toy \
    --part learn --out "$out/estimates-learn.json"
  check "bench_scaling live" mpi 2 "$CG_PYTHON" benchmarks/bench_scaling.py live --toy \
    --out "$out/scaling-2.json"
}

bench() {
  local out=$scratch/bench
  mkdir -p "$out"
  beside bench_alone "$out"
  beside bench_asleep "$out"
  bench_busy "$out"
  joined
  check "bench_scaling predict" "$CG_PYTHON" benchmarks/bench_scaling.py predict --toy \
    --live "$out" --pass-file "$out/pass.json" --out "$out/scaling_model.json" \
    --page "$out/scaling.md" --plot "$out/scaling_model.png"
  check "cluster scripts" env TOY=1 NODES=1 PER_NODE=2 DEVICE=cpu TASKS=digits \
    RESULTS="$out/cluster" bash launch/cluster/mpirun.sh toy grid
  check "summary" "$CG_PYTHON" benchmarks/summary.py "$out/cluster" --workers 2
  check "benchmarks wrote JSON" "$CG_PYTHON" -c \
    'import json, sys; [json.load(open(f))["results"] for f in sys.argv[1:]]' \
    "$out/exchange.json" "$out/sleep.json" "$out/digits.json" "$out/overlap.json" \
    "$out/evaluate.json" "$out/serving.json" \
    "$out/stall.json" "$out/overhead.json" "$out/faults.json" "$out/gpu.json" \
    "$out/scaling-2.json" "$out/pass.json" "$out/scaling_model.json" \
    "$out/cluster/step-digits-2.json" \
    "$out/simulator.json" "$out/kernels.json" "$out/decoder.json" \
    "$out/results/anytime.json" "$out/results/time_to_loss.json" "$out/inference.json"
}

case ${1:-all} in
  unit | slow | parallel | integrations | horovod | bench) "$1" ;;
  all)
    compile_beside
    unit
    slow
    parallel
    integrations
    horovod
    bench
    ;;
  *)
    echo "no part '$1': unit, slow, parallel, integrations, horovod, bench, or nothing for all" >&2
    exit 2
    ;;
esac
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
