#!/usr/bin/env bash
# Sets up .venv with the test extra, then checks style and types and runs the whole test suite.
#   bash scripts/test.sh [any argument of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh test
ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist worksteal "$@"
