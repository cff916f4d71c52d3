#!/usr/bin/env bash
# Builds everything and runs every test that needs no GPU. Arguments go to ctest, e.g. -L unit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

./deploy/install-deps.sh
cmake --workflow --preset release
# The unmodified `openai` client talks to the real server in one of the tests.
if command -v npm >/dev/null && [ -f tests/integration/openai_client/package-lock.json ]; then
  (cd tests/integration/openai_client && npm ci --no-audit --no-fund --silent)
fi
ctest --preset release "$@"
