#!/bin/sh
# Builds the CUDA kernels and their tests with nvcc alone (no other library is needed) and runs them
# on this machine's GPU. Run from the root of the sources.
#   tests/gpu/run_all.sh [build folder]     default: build/gpu
# Environment: ARCH (compute capability, default the GPU's own), JOBS, BENCH=0 to leave out the timings.
set -eu
out=${1:-build/gpu}
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
arch=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)}
jobs=${JOBS:-$(nproc)}
mkdir -p "$out"
flags="-std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -I. -arch=sm_$arch"

objects=""
for source in worker/kernels/cuda/*.cu common/quant/*.cc common/base/check.cc \
              tests/gpu/main.cc tests/gpu/random_blocks.cc tests/gpu/weights_test.cc \
              tests/gpu/ops_test.cc tests/gpu/sequence_test.cc tests/gpu/decode_test.cc \
              tests/gpu/bench.cc; do
  object="$out/$(echo "$source" | tr / _).o"
  echo "$source $object"
done > "$out/sources"
start=$(date +%s)
xargs -P "$jobs" -L 1 sh -c '
  case $3 in common/*) extra="-Xcompiler -ffp-contract=off" ;; *) extra= ;; esac
  case $3 in *.cc) extra="$extra -x cu" ;; esac
  $1 $2 $extra -c "$3" -o "$4" || { echo "failed: $3"; exit 255; }' sh "$nvcc" "$flags" < "$out/sources"
library=$(awk '$1 ~ /^(worker|common)/ || $1 ~ /random_blocks/ {print $2}' "$out/sources")
tests=$(awk '$1 ~ /tests\/gpu\/(main|.*_test)\.cc/ {print $2}' "$out/sources")
bench=$(awk '$1 ~ /tests\/gpu\/bench\.cc/ {print $2}' "$out/sources")
"$nvcc" -arch="sm_$arch" $library $tests -o "$out/kernel_test"
"$nvcc" -arch="sm_$arch" $library $bench -o "$out/kernel_bench"
echo "built for sm_$arch in $(( $(date +%s) - start )) s"
if [ "${BENCH:-1}" = 1 ]; then "$out/kernel_bench"; fi
"$out/kernel_test"
