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
rm -rf results/sync results/coded
train() { # NAME CODE
  # No run takes this long, unless something is wrong with the machine.
  timeout 600 bash launch/mpirun.sh -n "$workers" "$CG_PYTHON" launch/train.py \
    --task digits --code "$2" --faults "slow:worker=$((workers - 1)),factor=$factor" \
    --out "results/$1"
}
echo
echo "Worker $((workers - 1)) of $workers is $factor x slow. Waiting for everybody:"
train sync uncoded:micro=4
echo
echo "The same, coded:"
train coded spread:micro=4,copies=2
cp results/coded/arrivals.png results/arrivals.png
"$CG_PYTHON" launch/compare.py results/sync results/coded --slow-factor "$factor" \
  --out results/quickstart.json
echo
echo "Who arrived when:  results/arrivals.png"
echo "Curves:            $CG_PYTHON -m tensorboard.main --logdir results"
