#pragma once

// What the two attention kernels share: which entries of the context a block works on, and where
// partial results go.

#include "worker/kernels/cuda/kv_cache.cuh"

namespace packtrain::cuda {

// Entries of the context are positions, or places in the row's selection. Split s of a row with
// `count` entries owns [begin, end): whole 64-entry blocks, as many for each split.
struct Split {
  int begin, end, used;  // `used`: splits that own anything
};
__device__ inline Split SplitOf(int count, int max_splits, int s) {
  int blocks = CeilDiv(count, 64), per_split = CeilDiv(blocks, max_splits);
  return {min(count, s * per_split * 64), min(count, (s + 1) * per_split * 64),
          CeilDiv(blocks, per_split)};
}

__device__ inline int EntryCount(const AttentionArgs& args, int row) {
  int visible = args.at.positions[row] + 1;
  return args.selection != nullptr ? min(visible, args.selection_stride) : visible;
}

__device__ inline int EntryPosition(const AttentionArgs& args, int row, int entry) {
  return args.selection != nullptr
             ? args.selection[static_cast<size_t>(row) * args.selection_stride + entry]
             : entry;
}

// Workspace: (maximum, sum) of every (row, head, split), then their unnormalised outputs.
__device__ inline size_t PartialIndex(const AttentionArgs& args, int row, int head, int split) {
  return (static_cast<size_t>(row) * args.heads + head) * args.max_splits + split;
}
__device__ inline float2* PartialStats(const AttentionArgs& args) {
  return static_cast<float2*>(args.workspace);
}
__device__ inline float* PartialValues(const AttentionArgs& args) {
  return static_cast<float*>(args.workspace) +
         size_t{2} * args.at.rows * args.heads * args.max_splits;
}

// The result of a row's head, values i and on, where the context is not split.
__device__ inline void StoreWhole(const AttentionArgs& args, int row, int head, int i, float v) {
  size_t at = (static_cast<size_t>(row) * args.heads + head) * args.v_dim + i;
  if (args.out != nullptr) args.out[at] = v;
  if (args.emit.values.bf16 != nullptr) {
    args.emit.values.bf16[at] = __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
}

// Returns 0 and launches if the tensor core kernel covers `args`, else -1.
int AttentionTensorCores(const AttentionArgs& args, Stream stream);

}  // namespace packtrain::cuda
