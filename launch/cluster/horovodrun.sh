#!/usr/bin/env bash
# Runs the benchmarks on several machines; horovodrun (over MPI) starts the workers.
#
#   HOSTFILE=hosts NODES="1 2 4" PER_NODE=4 bash launch/cluster/horovodrun.sh NAME
#
# It writes benchmarks/results/NAME/*.json; hosts.sh and benchmarks/run_grid.sh list the
# settings. The repository has the same path on every machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. launch/env.sh
. launch/cluster/hosts.sh
cg_begin launch/cluster/horovodrun.sh "$@"
shift 2
arguments=(-np "$CG_N")
[ -z "$CG_HOSTS" ] || arguments+=(-H "$CG_HOSTS")
exec bash launch/horovodrun.sh "${arguments[@]}" "$CG_PYTHON" "$@"
