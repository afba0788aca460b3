#!/usr/bin/env bash
# Runs the straggler-free grid, the exchanges and the scaling runs, one after another.
#
#   bash benchmarks/run_grid.sh NAME [grid] [exchange] [scaling]     # all three
#   python benchmarks/summary.py benchmarks/results/NAME
#
# It writes benchmarks/results/NAME/{step-TASK-N,exchange-N,scaling-N}.json, and keeps
# files that exist. The settings are in the environment:
#
#   WORKERS           of grid and scaling                  "2 4 8"; scaling "2 4 8 16"
#   EXCHANGE_WORKERS  of exchange                          4
#   TASKS             "digits text gpt10m"
#   DEVICE            cpu or cuda                          cpu
#   RESULTS           folder                               benchmarks/results/NAME
#   LIMIT             seconds of a run, after which        1500
#                     it is tried again, at last without Horovod, which may hang
#   START             command that starts N workers; N and the script follow it
#   TOY=1             runs of seconds, to see that everything works
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=launch/env.sh
. launch/env.sh
if [ $# = 0 ]; then
  sed -n '2,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
name=$1
shift
parts=${*:-grid exchange scaling}
results=${RESULTS:-benchmarks/results/$name}
device=${DEVICE:-cpu}
limit=${LIMIT:-1500}
read -ra start <<<"${START:-bash benchmarks/run_grid.sh --start}"
toy=()
[ -z "${TOY:-}" ] || toy=(--toy)
failed=0

if [ "$name" = --start ]; then # N SCRIPT...: starts N workers on this machine
  n=$1
  shift
  exec bash launch/mpirun.sh -n "$n" "$CG_PYTHON" "$@"
fi

# measure FILE N SCRIPT...: runs SCRIPT with N workers, unless FILE exists.
measure() {
  local file=$results/$1 n=$2 tries more begin=$SECONDS
  shift 2
  if [ -s "$file" ]; then
    echo "kept    $file"
    return
  fi
  for tries in 1 2 3; do
    more=()
    [ "$tries" != 3 ] || more=(--no-horovod)
    echo "run     $file: $n workers, $*${more[*]:+ ${more[*]}}"
    if timeout --kill-after=20 "$limit" "${start[@]}" "$n" "$@" "${toy[@]}" \
      "${more[@]}" --device "$device" --out "$file" && [ -s "$file" ]; then
      echo "ok      $file, $((SECONDS - begin)) s"
      return
    fi
  done
  echo "FAILED  $file" >&2
  failed=$((failed + 1))
}

# Prints how often a step is measured, which depends on how long it takes.
effort() { # TASK N
  case $1 in
    digits) echo --rounds 12 --steps 20 ;;
    text) [ "$2" -gt 2 ] && echo --rounds 4 --steps 4 || echo --rounds 8 --steps 8 ;;
    # Four sequences per worker, one per micro-batch.
    gpt10m) echo --batch-size 4 --rounds 4 --steps 3 ;;
    *) echo --rounds 12 --steps 10 ;;
  esac
}

grid() {
  local task n aside
  for task in ${TASKS:-digits text gpt10m}; do
    for n in ${WORKERS:-2 4 8}; do
      # Horovod's thread would look for work on the other methods' cores.
      aside=--horovod-aside
      [ "$device" = cpu ] && [ -z "${START:-}" ] || aside=
      # shellcheck disable=SC2046,SC2086
      measure "step-$task-$n.json" "$n" benchmarks/bench_step.py --task "$task" \
        --factors 1 --overlap both $(effort "$task" "$n") $aside
    done
  done
}

exchange() {
  local n
  for n in ${EXCHANGE_WORKERS:-4}; do
    measure "exchange-$n.json" "$n" benchmarks/bench_exchange.py
  done
}

scaling() {
  local n
  for n in ${WORKERS:-2 4 8 16}; do
    measure "scaling-$n.json" "$n" benchmarks/bench_scaling.py live
  done
}

mkdir -p "$results"
for part in $parts; do
  case $part in
    grid | exchange | scaling) "$part" ;;
    *)
      echo "no part '$part': grid, exchange, scaling, or nothing for all" >&2
      exit 2
      ;;
  esac
done
[ "$failed" = 0 ]
