#!/usr/bin/env bash
# Sets up .venv and shows FaMUS against plain training on real images with 40 % wrong labels (digits, no download).
#   bash scripts/quickstart.sh [any flag of scripts/run_famus.py]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh ""
accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    scripts/run_famus.py --dataset_name digits --noise 0.4 --num_train_epochs 25 --compare "$@"
