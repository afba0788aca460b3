# shellcheck shell=bash
# The scripts beside source this file. It runs the benchmarks for several numbers of
# machines.
#
#   NODES      numbers of machines                                        "1"
#   PER_NODE   workers of a machine, one per GPU          its GPUs, or with none 2
#   DEVICE     cuda or cpu                                cuda where there is a GPU
#   HOSTFILE   one host a line; the rest of a line is ignored         this machine
#
# benchmarks/run_grid.sh has more.

cg_gpus() { # prints the number of GPUs of this machine
  { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true
}

if [ -z "${PER_NODE:-}" ]; then
  PER_NODE=$(cg_gpus)
  [ "$PER_NODE" -gt 0 ] || PER_NODE=2
fi
if [ -z "${DEVICE:-}" ]; then
  DEVICE=cpu
  [ "$(cg_gpus)" = 0 ] || DEVICE=cuda
fi
export PER_NODE DEVICE

# Prints HOST:WORKERS,... for N workers, or nothing without a host file.
cg_hosts() {
  local workers=$1 found=() host
  [ -n "${HOSTFILE:-}" ] || return 0
  while read -r host _; do
    case $host in '' | '#'*) continue ;; esac
    [ $((${#found[@]} * PER_NODE)) -lt "$workers" ] || break
    found+=("$host:$PER_NODE")
  done <"$HOSTFILE"
  if [ $((${#found[@]} * PER_NODE)) -lt "$workers" ]; then
    echo "codedgrad: $HOSTFILE has ${#found[@]} hosts of $PER_NODE workers, $workers were asked for" >&2
    return 1
  fi
  (IFS=, && echo "${found[*]}")
}

# cg_begin SCRIPT "$@": runs everything and exits; or, if the arguments ask SCRIPT to
# start N workers, sets CG_N and CG_HOSTS.
cg_begin() {
  local script=$1
  shift
  if [ "${1:-}" != --start ]; then
    cg_suite "$script" "$@"
    exit
  fi
  CG_N=$2
  CG_HOSTS=$(cg_hosts "$CG_N")
}

# cg_suite SCRIPT NAME [PART...]: runs the parts; SCRIPT starts the workers.
cg_suite() {
  local script=$1 k workers=
  shift
  if [ $# = 0 ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$script" >&2
    exit 2
  fi
  for k in ${NODES:-1}; do workers+=" $((k * PER_NODE))"; done
  START="bash $script --start" WORKERS=$workers \
    EXCHANGE_WORKERS=${EXCHANGE_WORKERS:-$workers} bash benchmarks/run_grid.sh "$@"
}
