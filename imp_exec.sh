#!/usr/bin/env bash
# Iterative magnitude pruning on CIFAR-10 with ResNet-20 at 1.44%: long and short rounds, cold and warm, several trials.
#
#   ./imp_exec.sh [--option value ...]                 every option is passed on to main.py
#   TRIALS=1 RUNS="long_warm" ./imp_exec.sh            fewer trials (3), fewer runs (long_cold long_warm short_cold
#                                                      short_warm, and long_lr_rewinding, which is not run unasked)
#
# Stops at the first failure. Given again, it passes over finished trials; main.py says how to resume an unfinished one.
set -euo pipefail
cd "$(dirname "$0")"

for run in ${RUNS:-long_cold long_warm short_cold short_warm}; do
    echo "== ResNet-20, iterative magnitude pruning: ${run/_/, }"
    "${PYTHON:-python}" main.py --config "configs/imp/resnet20_${run}.yml" --num_trial "${TRIALS:-3}" "$@"
done
