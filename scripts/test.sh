#!/usr/bin/env bash
# Everything a change must pass: formatting and lint, then the tests. Makes the environment first where it is missing.
#
#     bash scripts/test.sh                      # all but the tests marked slow or gpu: some minutes on two cores
#     bash scripts/test.sh tests/test_audio.py  # arguments go to pytest
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"

bash scripts/dev_env.sh
# By module, so that the interpreter is this environment's even where the folder was moved or copied.
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest "$@"
