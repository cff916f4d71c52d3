#!/bin/bash
# Runs all that needs a GPU on this machine's first one and prints a table; full logs in
# BUILD/gpu_logs. Exit status 1 if anything failed.
#   tests/gpu/run_all.sh [BUILD]   a folder configured with PACKTRAIN_CUDA=ON and built, or a bundle of
#                                  its programs (bin/, lib/, tests/); default: build/cuda
#   tests/gpu/run_all.sh --kernels OUT   compiles the kernels and their tests with nvcc alone, which
#                                  needs no other library, and runs only them
# Environment: PACKTRAIN_GOLDEN_DIR (models as in tests/golden/models; default BUILD/golden_models),
# SANITIZE=0 and BENCH=0 to leave these out, PACKTRAIN_SOAK_SECONDS (default 60), JOBS, ARCH.
set -u
cd "$(dirname "$0")/../.." || exit 2
jobs=${JOBS:-$(nproc)}
kernels_only=0
if [ "${1:-}" = --kernels ]; then kernels_only=1; shift; fi
build=$(realpath -m "${1:-build/cuda}")
logs=$build/gpu_logs
mkdir -p "$logs"
failed=0

row() { # name, command...
  local name=$1 start=$SECONDS result=ok
  shift
  if [ ! -e "$1" ] && ! command -v "$1" > /dev/null; then
    printf '%-26s %-12s\n' "$name" "not built"
    return
  fi
  "$@" > "$logs/$name.log" 2>&1 || { result=FAILED; failed=1; }
  printf '%-26s %-12s %5d s  %s\n' "$name" "$result" $((SECONDS - start)) \
    "$(grep -E '^(\[  (PASSED|FAILED)|[0-9]+ (cases|clean)|Ran |FAILED)' "$logs/$name.log" | tail -1)"
}

compile_kernels() {
  local nvcc arch flags source
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  arch=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)}
  flags="-std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -I. -arch=sm_$arch"
  mkdir -p "$build/objects" "$build/tests"
  for source in worker/kernels/cuda/*.cu common/quant/*.cc common/base/check.cc \
                tests/gpu/{main,random_blocks,weights_test,ops_test,sequence_test,decode_test,mailbox_test,bench}.cc; do
    echo "$source $build/objects/$(echo "$source" | tr / _).o"
  done > "$build/objects/sources"
  xargs -P "$jobs" -L 1 sh -c '
    case $3 in common/*) extra="-Xcompiler -ffp-contract=off" ;; *) extra= ;; esac
    case $3 in *.cc) extra="$extra -x cu" ;; esac
    $1 $2 $extra -c "$3" -o "$4" || { echo "failed: $3"; exit 255; }' sh "$nvcc" "$flags" \
    < "$build/objects/sources" || return 1
  local library tests bench
  library=$(awk '$1 ~ /^(worker|common)/ || $1 ~ /random_blocks/ {print $2}' "$build/objects/sources")
  tests=$(awk '$1 ~ /tests\/gpu\/(main|.*_test)\.cc/ {print $2}' "$build/objects/sources")
  bench=$(awk '$1 ~ /tests\/gpu\/bench\.cc/ {print $2}' "$build/objects/sources")
  "$nvcc" -arch="sm_$arch" $library $tests -lcublasLt -o "$build/tests/kernel_test" &&
    "$nvcc" -arch="sm_$arch" $library $bench -lcublasLt -o "$build/tests/kernel_bench"
}

# Cases that finish in seconds under the tools, of every kind of kernel.
sanitized="ConvertedActivationsAreWithinHalfAStep EveryTypeDecodesBitForBit
  EveryTypeMultipliesExpertsOfPairs BadShapesAreRefused NormsMatchDoubleSums ActivationsMatchDoubles
  RopeMatchesDoublesNearOneMillion RouterPicksAndWeighsAsDefined RouterTiesGoToTheLowerExpert
  PairsAreSortedStablyAndCombinedInRankOrder GemmMatchesDoubleSumsForOddShapes
  GroupedGemmFollowsOffsetsAndRowIndex TopKIsExactWithTiesToTheLowerIndex SamplingFollowsTheRules
  KvPagesAreCopiedWhole SparseMlaAttentionReadsTheListedPositions GqaAttentionMatchesDoubles
  AttentionOfOddDimensionsRunsInF32 IndexerScoresMatchDoubles
  DeltaNetMatchesDoublesAndAnyCutOfFewTokens DeltaNetChunksMatchDoubles GatedNormMatchesDoubles FeedForwardOfPairsIsItsPartsBitForBit
  DeltaNetStepIsItsPartsBitForBit GqaHeadsAreTheirPartsBitForBit MlaHeadsAreTheirPartsBitForBit
  AttentionPutsItsResultWhereAsked ExpertsAreAskedAndAnsweredInTheStream
  AClosedMailboxFailsTheStepWhileItWaits ARecordedStepReplaysWithNewWords"
sanitize() { # tool
  local tool sanitizer
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  [ -x "$sanitizer" ] || { echo "no compute-sanitizer"; return 1; }
  echo "$sanitized" | tr -s ' ' '\n' | xargs -P 8 -I {} sh -c '
    timeout 110 "$1" --tool "$2" --error-exitcode 9 "$3/tests/kernel_test" {} > "$4/$2.{}.log" 2>&1 &&
      echo "clean {}" || echo "FAILED {}: $(grep -E "SUMMARY" "$4/$2.{}.log" | tail -1)"' \
    sh "$sanitizer" "$1" "$build" "$logs" | sort
}
sanitized_row() {
  sanitize "$1" | tee "$logs/list"
  echo "$(grep -c ^clean "$logs/list") clean of $(echo "$sanitized" | wc -w)"
  ! grep -q -v ^clean "$logs/list"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
if [ $kernels_only = 1 ]; then row compile compile_kernels; fi
export PACKTRAIN_BUILD_DIR=$build PACKTRAIN_GOLDEN_DIR=${PACKTRAIN_GOLDEN_DIR:-$build/golden_models}
export PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=$build/lib:${LD_LIBRARY_PATH:-}
row kernel_test "$build/tests/kernel_test"
if [ $kernels_only = 0 ]; then
  for program in expert_stream_test cuda_stage_test nccl_transport_test; do
    row "$program" "$build/tests/$program"
  done
  for script in pipeline_test failure_test mixed_load_test; do
    [ -x "$build/bin/packtrain" ] && row "$script" python3 "tests/gpu/$script.py"
  done
fi
if [ "${SANITIZE:-1}" = 1 ]; then
  row memcheck sanitized_row memcheck
  row racecheck sanitized_row racecheck
fi
if [ "${BENCH:-1}" = 1 ]; then
  row kernel_bench "$build/tests/kernel_bench"
  cat "$logs/kernel_bench.log" 2> /dev/null
fi
exit $failed
