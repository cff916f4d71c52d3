// The feed-forward layers of a CUDA stage.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_run.h"
#include "worker/device/cuda/expert_stream.h"
#include "worker/device/cuda/remote_experts.h"

namespace packtrain {
namespace {

size_t Product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

// One part of an experts product: `rows` rows of each expert.
cuda::MatVecPart ExpertPart(const DeviceMatrix& w, int rows, int row_stride, float* y) {
  return {.w = w.data,
          .expert_stride = static_cast<size_t>(row_stride) * w.row_bytes(),
          .y = y,
          .y_stride = 0,
          .rows = rows};
}

void AddShared(CudaRun* run, const SharedExpert& shared, float* y) {
  if (shared.y == nullptr) return;
  LAUNCH(run, cuda::AddScaled(y, shared.y, shared.logit, run->rows, run->config.hidden_dim,
                              run->stream));
}

const void* MatVecInput(const DeviceMatrix& w, const DeviceActivations& x) {
  return w.kernels->f32_activations ? static_cast<const void*>(x.f32) : x.q8;
}

// gate and up of one type that also has a kernel for both together.
bool FusesGateUp(const DeviceFfn& w, int inner_dim) {
  return w.gate.kernels == w.up.kernels && w.gate.kernels->gate_up != nullptr &&
         inner_dim % 32 == 0;
}

// The inner values of each pick on its own.
void GateUpByPair(CudaRun* run, const DeviceExperts& experts, const DevicePicks& picks,
                  const DeviceActivations& x, const DeviceActivations& inner) {
  const DeviceFfn& w = experts.ffn;
  if (FusesGateUp(w, inner.n)) {
    LAUNCH(run, w.gate.kernels->gate_up(
                    {.gate = w.gate.data,
                     .up = w.up.data,
                     .expert_stride = static_cast<size_t>(experts.row_stride) * w.gate.row_bytes(),
                     .ids = picks.ids,
                     .rows = inner.n,
                     .n = w.gate.cols,
                     .x = x.q8,
                     .pairs = inner.rows,
                     .pairs_per_row = run->config.moe.top_k,
                     .out = inner.out()},
                    run->stream));
    return;
  }
  float* gate = run->Take<float>(Product(inner.rows, inner.n));
  float* up = run->Take<float>(Product(inner.rows, inner.n));
  for (const auto& [matrix, y] : {std::pair(&w.gate, gate), {&w.up, up}}) {
    cuda::MatVecArgs args;
    args.tokens = inner.rows;
    args.experts = true;
    args.num_experts = experts.num_experts;
    args.ids = picks.ids;
    args.pairs_per_row = run->config.moe.top_k;
    args.n = matrix->cols;
    args.parts[0] = ExpertPart(*matrix, inner.n, experts.row_stride, y);
    args.x = MatVecInput(*matrix, x);
    LAUNCH(run, matrix->kernels->mat_vec(args, run->stream));
  }
  LAUNCH(run, cuda::SwiGlu(gate, up, inner.n, inner.rows, inner.n, inner.out(), run->stream));
}

// Each pick on its own: few rows, or weights without a faster way. y includes the shared expert.
void ExpertsByPair(CudaRun* run, const DeviceExperts& experts, const DevicePicks& picks,
                   const SharedExpert& shared, const DeviceActivations& x, float* y) {
  const int top_k = run->config.moe.top_k, pairs = run->rows * top_k,
            inner_dim = experts.expert_dim;
  DeviceActivations inner{.rows = pairs, .n = inner_dim};
  inner.f32 = run->Take<float>(Product(pairs, inner_dim));
  if (inner_dim % 32 == 0) {
    inner.q8 = run->Take<uint8_t>(static_cast<size_t>(pairs) *
                                  cuda::Q8RowBytes(static_cast<size_t>(inner_dim)));
  }
  GateUpByPair(run, experts, picks, x, inner);
  const DeviceMatrix& w = experts.ffn.down;
  const int hidden = w.rows / experts.num_experts;
  if (w.kernels->down != nullptr) {
    run->JoinBranch();
    LAUNCH(run, w.kernels->down({.w = w.data,
                                 .expert_stride = static_cast<size_t>(hidden) * w.row_bytes(),
                                 .ids = picks.ids,
                                 .weights = picks.weights,
                                 .rows = hidden,
                                 .n = w.cols,
                                 .x = inner.q8,
                                 .tokens = run->rows,
                                 .top_k = top_k,
                                 .shared = shared.y,
                                 .shared_logit = shared.logit,
                                 .y = y},
                                run->stream));
    return;
  }
  float* down = run->Take<float>(Product(pairs, hidden));
  cuda::MatVecArgs args;
  args.tokens = pairs;
  args.experts = true;
  args.num_experts = experts.num_experts;
  args.ids = picks.ids;
  args.parts[0] = ExpertPart(w, hidden, hidden, down);
  args.n = w.cols;
  args.x = MatVecInput(w, inner);
  LAUNCH(run, w.kernels->mat_vec(args, run->stream));
  LAUNCH(run, cuda::CombineExperts(down, picks.ids, nullptr, nullptr, picks.weights, run->rows,
                                   top_k, hidden, false, y, run->stream));
  run->JoinBranch();
  AddShared(run, shared, y);
}

// C rows of the piece's experts := A rows times their matrices.
void PieceProduct(CudaRun* run, const DeviceMatrix& w, const ExpertStream::Piece& piece, int rows,
                  int row_stride, const uint16_t* a, const int32_t* row_index,
                  const int32_t* offsets, int total_rows, float* c) {
  if (w.kernels->mat_mul != nullptr) {
    cuda::MatMulArgs args;
    args.parts[0] = {.w = piece.data,
                     .expert_stride = static_cast<size_t>(row_stride) * w.row_bytes(),
                     .y = c,
                     .y_stride = 0,
                     .rows = rows};
    args.n = w.cols;
    args.x = a;
    args.row_index = row_index;
    args.groups = piece.count;
    args.offsets = offsets + piece.first;
    args.tokens = total_rows;
    LAUNCH(run, w.kernels->mat_mul(args, run->stream));
    return;
  }
  // Unquantised ones as bf16, one batch at a time.
  const size_t matrix = Product(rows, w.cols);
  const int fit = std::max(1, static_cast<int>(run->unpacked_capacity / matrix));
  for (int first = 0; first < piece.count; first += fit) {
    const int count = std::min(fit, piece.count - first);
    for (int i = 0; i < count; ++i) {
      LAUNCH(run, w.kernels->decode_bf16(
                      piece.data + Product(first + i, row_stride) * w.row_bytes(), matrix,
                      run->unpacked + static_cast<size_t>(i) * matrix, run->stream));
    }
    LAUNCH(run, cuda::Gemm({.a = a,
                            .lda = w.cols,
                            .row_index = row_index,
                            .b = run->unpacked,
                            .b_group_stride = matrix,
                            .c = c,
                            .ldc = rows,
                            .groups = count,
                            .offsets = offsets + piece.first + first,
                            .m = total_rows,
                            .n = rows,
                            .k = w.cols},
                           run->stream));
  }
}

// The same for all experts of a matrix, on the device or streamed there.
void GroupedProduct(CudaRun* run, const DeviceMatrix& w, int rows, int row_stride, int num_experts,
                    const uint16_t* a, const int32_t* row_index, const int32_t* offsets,
                    int total_rows, float* c) {
  if (run->measuring) return;
  if (w.data != nullptr) {
    PieceProduct(run, w, {w.data, 0, num_experts}, rows, row_stride, a, row_index, offsets,
                 total_rows, c);
    return;
  }
  for (int done = 0; done < num_experts && run->status.ok();) {
    const ExpertStream::Piece piece = run->expert_stream->Acquire(run);
    CHECK(piece.first == done);
    PieceProduct(run, w, piece, rows, row_stride, a, row_index, offsets, total_rows, c);
    run->expert_stream->Release(run);
    done += piece.count;
  }
}

// Many rows: sorted by expert, each expert's rows at once.
void ExpertsByGroup(CudaRun* run, const DeviceExperts& experts, const DevicePicks& picks,
                    const DeviceActivations& x, float* y) {
  const int top_k = run->config.moe.top_k, pairs = run->rows * top_k,
            inner_dim = experts.expert_dim;
  const DeviceFfn& w = experts.ffn;
  const int hidden = w.down.rows / experts.num_experts;
  auto* offsets = run->Take<int32_t>(static_cast<size_t>(experts.num_experts) + 1);
  auto* token_of_row = run->Take<int32_t>(static_cast<size_t>(pairs));
  auto* row_of_pair = run->Take<int32_t>(static_cast<size_t>(pairs));
  LAUNCH(run, cuda::SortPairs(picks.ids, nullptr, run->rows, top_k, experts.num_experts, offsets,
                              token_of_row, row_of_pair, run->stream));
  auto* inner = run->Take<uint16_t>(Product(pairs, inner_dim));
  {
    const ScratchScope products(run);
    float* gate = run->Take<float>(Product(pairs, inner_dim));
    float* up = run->Take<float>(Product(pairs, inner_dim));
    GroupedProduct(run, w.gate, inner_dim, experts.row_stride, experts.num_experts, x.bf16,
                   token_of_row, offsets, pairs, gate);
    GroupedProduct(run, w.up, inner_dim, experts.row_stride, experts.num_experts, x.bf16,
                   token_of_row, offsets, pairs, up);
    LAUNCH(run, cuda::SwiGlu(gate, up, inner_dim, pairs, inner_dim, {.bf16 = inner}, run->stream));
  }
  float* down = run->Take<float>(Product(pairs, hidden));
  GroupedProduct(run, w.down, hidden, hidden, experts.num_experts, inner, nullptr, offsets, pairs,
                 down);
  LAUNCH(run, cuda::CombineExperts(down, picks.ids, nullptr, row_of_pair, picks.weights, run->rows,
                                   top_k, hidden, false, y, run->stream));
}

// Also the logit of the shared expert, if it has one.
DevicePicks Route(CudaRun* run, const DeviceLayer& w, const DeviceActivations& x,
                  float** shared_logit) {
  const MoeConfig& moe = run->config.moe;
  float* logits = run->Take<float>(Product(run->rows, moe.num_experts));
  DevicePicks picks{.ids = run->Take<int32_t>(Product(run->rows, moe.top_k)),
                    .weights = run->Take<float>(Product(run->rows, moe.top_k))};
  if (w.shared_router.empty()) {
    DeviceLinear(run, w.router, x, logits);
  } else {
    *shared_logit = run->Take<float>(static_cast<size_t>(run->rows));
    DeviceLinears(run, x, {{&w.router, logits}, {&w.shared_router, *shared_logit}});
  }
  cuda::RouterArgs args;
  args.logits = logits;
  args.bias = w.router_bias;
  args.tokens = run->rows;
  args.num_experts = moe.num_experts;
  args.top_k = moe.top_k;
  args.sigmoid = moe.gating == GatingKind::kSigmoid;
  args.groups = moe.num_groups;
  args.groups_used = moe.groups_used;
  args.normalize = moe.normalise;
  args.scale = moe.scale;
  args.ids = picks.ids;
  args.weights = picks.weights;
  LAUNCH(run, cuda::Router(args, run->stream));
  return picks;
}

// Its scratch memory stays taken.
void Dense(CudaRun* run, const DeviceFfn& w, const DeviceActivations& x, float* y) {
  const int inner_dim = w.gate.rows;
  const DeviceActivations inner = run->TakeInput(run->rows, w.down);
  if (run->rows == 1 && run->decode() && FusesGateUp(w, inner_dim)) {
    LAUNCH(run, w.gate.kernels->gate_up({.gate = w.gate.data,
                                         .up = w.up.data,
                                         .rows = inner_dim,
                                         .n = w.gate.cols,
                                         .x = x.q8,
                                         .pairs = 1,
                                         .out = inner.out()},
                                        run->stream));
  } else {
    float* gate = run->Take<float>(Product(run->rows, inner_dim));
    float* up = run->Take<float>(Product(run->rows, inner_dim));
    DeviceLinears(run, x, {{&w.gate, gate}, {&w.up, up}});
    LAUNCH(run, cuda::SwiGlu(gate, up, inner_dim, run->rows, inner_dim, inner.out(), run->stream));
  }
  DeviceLinear(run, w.down, inner, y);
}

float* SharedExpertOutput(CudaRun* run, const DeviceLayer& w, const DeviceActivations& x) {
  if (w.shared.gate.empty()) return nullptr;
  float* y = run->Take<float>(Product(run->rows, run->config.hidden_dim));
  Dense(run, w.shared, x, y);
  return y;
}

// Experts that are on this device or are streamed to it.
void OwnExperts(CudaRun* run, const DeviceExperts& experts, const DevicePicks& picks,
                const SharedExpert& shared, const DeviceActivations& x, float* y) {
  const DeviceFfn& ffn = experts.ffn;
  const auto f32 = [](const DeviceMatrix& m) { return m.kernels->type == TensorType::kF32; };
  if (run->decode() || (f32(ffn.gate) && f32(ffn.up) && f32(ffn.down)) ||
      experts.expert_dim % 32 != 0) {
    ExpertsByPair(run, experts, picks, shared, x, y);
  } else {
    ExpertsByGroup(run, experts, picks, x, y);
    AddShared(run, shared, y);
  }
}

}  // namespace

void DeviceDense(CudaRun* run, const DeviceFfn& w, const DeviceActivations& x, float* y) {
  const ScratchScope scope(run);
  Dense(run, w, x, y);
}

void DeviceMoe(CudaRun* run, int layer, const DeviceLayer& w, const DeviceActivations& x,
               float* y) {
  const ScratchScope scope(run);
  SharedExpert shared;
  const DeviceExperts* experts = w.experts.num_experts > 0 ? &w.experts
                                 : run->streaming          ? run->expert_stream->Find(layer)
                                                           : nullptr;
  if (experts != nullptr) {
    run->BeginBranch();
    shared.y = SharedExpertOutput(run, w, x);
    run->EndBranch();
    const DevicePicks picks = Route(run, w, x, &shared.logit);
    OwnExperts(run, *experts, picks, shared, x, y);
  } else {
    const DevicePicks picks = Route(run, w, x, &shared.logit);
    const auto beside = [&] {
      shared.y = SharedExpertOutput(run, w, x);
      return shared;
    };
    run->remote_experts->Enqueue(run, layer, picks, x, beside, y);
  }
}

}  // namespace packtrain
