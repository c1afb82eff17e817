#!/usr/bin/env bash
# Gem-Miner on CIFAR-10 with ResNet-20 at the three published targets, several trials of each, one after another.
#
#   ./cifar_exec.sh [--option value ...]        every option is passed on to main.py
#   TRIALS=1 TARGETS="1_44" ./cifar_exec.sh     fewer trials (3), fewer targets (3_72 1_44 0_59)
#
# Stops at the first failure. Given again, it passes over finished trials; main.py says how to resume an unfinished one.
set -euo pipefail
cd "$(dirname "$0")"

for target in ${TARGETS:-3_72 1_44 0_59}; do
    echo "== ResNet-20 at ${target/_/.}% of the weights"
    "${PYTHON:-python}" main.py --config "configs/resnet20/resnet20_sparsity_${target}_unflagT.yml" \
        --num_trial "${TRIALS:-3}" "$@"
done
