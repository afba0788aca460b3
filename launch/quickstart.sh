#!/usr/bin/env bash
# Goes from a bare machine to a coded run: it installs into .venv and trains the digits
# CNN on 4 workers of which one is 8 x slow, first waiting for everybody, then coded.
#
#   bash launch/quickstart.sh
#
# It leaves results/quickstart.json, results/arrivals.png and TensorBoard files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh
# shellcheck source=launch/env.sh
. launch/env.sh

workers=4
factor=8
rm -rf results/sync results/coded results/calm*
train() { # NAME CODE [OPTION ...]
  # No run takes this long, unless something is wrong with the machine.
  timeout 600 bash launch/mpirun.sh -n "$workers" "$CG_PYTHON" launch/train.py \
    --task digits --code "$2" --out "results/$1" "${@:3}"
}
slow=(--faults "slow:worker=$((workers - 1)),factor=$factor" --same-bits)
echo
echo "Worker $((workers - 1)) of $workers is $factor x slow. Waiting for everybody:"
train sync uncoded:micro=4 "${slow[@]}"
echo
echo "The same, coded:"
train coded spread:micro=4,copies=2 "${slow[@]}"
echo
echo "Nobody slow, in turns: own passes whole (the default), and as micro-batches:"
timeout 600 bash launch/mpirun.sh -n "$workers" "$CG_PYTHON" launch/calm.py \
  --out results/calm.json
cp results/coded/arrivals.png results/arrivals.png
"$CG_PYTHON" launch/compare.py results/sync results/coded --slow-factor "$factor" \
  --calm results/calm.json --out results/quickstart.json
echo
echo "Who arrived when:  results/arrivals.png"
echo "Curves:            $CG_PYTHON -m tensorboard.main --logdir results"
