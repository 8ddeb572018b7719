#!/usr/bin/env bash
# Run the linter and the tests in two processes. Creates .venv first if necessary.
#
#     bash scripts/test.sh                     # fast tests: about four minutes on two cores
#     bash scripts/test.sh --slow              # slow tests
#     bash scripts/test.sh tests/test_mfcc.py  # other arguments are passed to pytest
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

marker="not slow and not gpu" order=--loadscope-reorder
if [[ ${1:-} == --slow ]]; then
    marker="slow and not gpu" order=--no-loadscope-reorder # the demo, which takes longest, starts early
    shift
fi
bash scripts/dev_env.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
if command -v node >/dev/null; then # the syntax of the review page's scripts
    for script in core/detection/page/*.js; do node --check "$script"; done
fi
export OMP_NUM_THREADS=1 # per process
exec .venv/bin/python -m pytest -n 2 --dist loadfile $order -m "$marker" "$@"
