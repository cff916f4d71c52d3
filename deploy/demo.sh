#!/usr/bin/env bash
# Builds Packtrain and serves the two embedded demo models on 127.0.0.1:8001: the primary as two CPU
# stages and an experts worker, the sidecar as one worker. Ctrl-C ends everything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

./deploy/install-deps.sh
cmake --preset release >/dev/null
cmake --build --preset release --target packtrain packtrain-worker

cat <<'TRY'

When it is ready, try in another terminal:

  curl -N http://127.0.0.1:8001/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "demo-primary", "stream": true, "messages": [{"role": "user", "content": "Tell me a story"}]}'

  ./build/release/bin/packtrain chat --model demo-sidecar "Hello"

TRY
exec ./build/release/bin/packtrain serve configs/topologies/cpu-demo.yaml
