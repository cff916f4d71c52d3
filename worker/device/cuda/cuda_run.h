#pragma once

// What the layers of a CUDA stage share while a ubatch runs. Layer code enqueues kernels and never
// waits; the first failed launch is kept and reported when the ubatch ends. The same code, run with
// `measuring`, finds out how much scratch memory a ubatch needs.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/model/config.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/device/cuda/cuda_recording.h"
#include "worker/device/cuda/cuda_weights.h"
#include "worker/kernels/cuda/kernels.h"
#include "worker/kernels/cuda/mailbox.h"

struct CUevent_st;

namespace packtrain {

// Up to this many rows run as a decode step: mat-vec kernels, whose results for a row do not depend
// on the others.
inline constexpr int kDecodeRows = 8;
// Parts that attention cuts a context into in a decode step.
inline constexpr int kDecodeSplits = 32;

// The cache and state of one layer; only the parts of its kind exist.
struct DeviceLayerCache {
  uint8_t* latent = nullptr;
  uint8_t* k = nullptr;
  uint8_t* v = nullptr;
  uint8_t* index_keys = nullptr;
  float* conv = nullptr;        // [slots, 3, channels]
  float* state = nullptr;       // [slots, v_heads, k_dim, v_dim]
  float* saved_conv = nullptr;  // the same by snapshot
  float* saved_state = nullptr;
};

// Rows as the kernels read them: f32, and what products want for this number of rows.
struct DeviceActivations {
  int rows = 0;
  int n = 0;
  float* f32 = nullptr;
  uint8_t* q8 = nullptr;     // up to kDecodeRows rows (or pairs), n % 32 == 0
  uint16_t* bf16 = nullptr;  // more

  cuda::ActivationOut out() const { return {.f32 = f32, .q8 = q8, .bf16 = bf16}; }
  // `count` of the rows.
  DeviceActivations Rows(int first, int count) const;
};

// The ubatch in device memory: one array behind the other, uploaded at once.
struct DeviceBatch {
  cuda::MailboxStep* mailbox_step = nullptr;
  int32_t* positions = nullptr;     // [rows]
  int32_t* table_offset = nullptr;  // [rows]
  int32_t* row_offset = nullptr;    // [sequences + 1]
  int32_t* slots = nullptr;         // [sequences]
  uint8_t* embedded = nullptr;      // [rows] of the embedding table as stored
  int32_t* page_tables = nullptr;   // of the sequences, one behind the other
};

// One sequence's rows.
struct RowRange {
  int first = 0;
  int rows = 0;
};

class ExpertStream;
class RemoteExperts;

struct CudaRun {
  explicit CudaRun(const ModelConfig& model) : config(model) {}

  const ModelConfig& config;
  cuda::Stream stream = nullptr;
  cuda::KvType kv_type = cuda::KvType::kF16;
  RemoteExperts* remote_experts = nullptr;
  ExpertStream* expert_stream = nullptr;
  bool streaming = false;  // this ubatch computes the streamed layers here

  int rows = 0;
  int max_position = 0;
  int columns = 0;  // scores of the indexer in a row: all visible positions and more
  std::vector<RowRange> sequences;
  DeviceBatch batch;
  float* cos_sin = nullptr;      // [rows, rope.dims / 2] pairs
  int32_t* selection = nullptr;  // [rows, indexer.top_k]
  int32_t* arrived = nullptr;    // [kDecodeRows, num_key_heads] of Gated DeltaNet, zeros
  bool sparse() const { return config.indexer.top_k > 0 && max_position >= config.indexer.top_k; }
  bool decode() const { return rows <= kDecodeRows; }
  cuda::KvRows at() const { return {batch.page_tables, batch.table_offset, batch.positions, rows}; }

  // Scratch, by stack: what a scope takes is given back at its end.
  bool measuring = false;
  uint8_t* scratch = nullptr;
  size_t scratch_used = 0, scratch_peak = 0;
  // Unpacked weights of a prefill product.
  uint16_t* unpacked = nullptr;
  size_t unpacked_capacity = 0;  // elements

  absl::Status status;
  int operations = 0;  // that this ubatch had the device do; of a recording, its nodes

  // While a step is recorded: see OnHost.
  CudaRecording* recording = nullptr;
  // Calls when everything before it has been enqueued, now or in each replay.
  void OnHost(std::function<absl::Status()> call);

  // Branches of a decode step that do not need each other: what is enqueued between BeginBranch and
  // EndBranch runs beside what follows, up to JoinBranch. One at a time; the two may not share
  // scratch memory.
  cuda::Stream branch = nullptr;
  CUevent_st* branch_begin = nullptr;
  CUevent_st* branch_end = nullptr;
  void BeginBranch();
  void EndBranch();
  void JoinBranch();

  template <typename T>
  T* Take(size_t count) {
    T* p = reinterpret_cast<T*>(scratch + scratch_used);
    scratch_used += (count * sizeof(T) + 16 + 255) / 256 * 256;
    scratch_peak = scratch_peak > scratch_used ? scratch_peak : scratch_used;
    return p;
  }
  // Memory for `n_rows` activations of n values, in all forms their readers may want.
  DeviceActivations TakeActivations(int n_rows, int n);
  // For products with `reader` alone: no f32 where they read something else.
  DeviceActivations TakeInput(int n_rows, const DeviceMatrix& reader);

  void Check(int code, std::string_view what) {
    if (code != 0 && status.ok()) status = CudaStatus(code, what);
  }
};

// Evaluates a kernel launch unless the run only measures.
#define LAUNCH(run, call)                                     \
  do {                                                        \
    if ((run)->measuring) break;                              \
    (run)->operations += (run)->recording == nullptr ? 1 : 0; \
    (run)->Check((call), #call);                              \
  } while (false)

// Gives scratch memory back.
class ScratchScope {
 public:
  explicit ScratchScope(CudaRun* run) : run_(run), used_(run->scratch_used) {}
  ~ScratchScope() { run_->scratch_used = used_; }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  CudaRun* run_;
  size_t used_;
};

// Within its life the run's rows are `rows` of them. Their sequences are not those of the window:
// for work that looks at rows only.
class RowWindow {
 public:
  RowWindow(CudaRun* run, int first, int rows);
  ~RowWindow();
  RowWindow(const RowWindow&) = delete;
  RowWindow& operator=(const RowWindow&) = delete;

 private:
  CudaRun* run_;
  int first_, all_rows_;
};

// Whether products of more than kDecodeRows rows read bf16, not f32.
bool ReadsBf16(const DeviceMatrix& w);
// y [x.rows, w.rows] with row stride y_stride (0: dense) := x w^T.
void DeviceLinear(CudaRun* run, const DeviceMatrix& w, const DeviceActivations& x, float* y,
                  int y_stride = 0);
// The same per head: w holds `heads` matrices, x [rows * heads, cols] rows with the head fastest.
// y: f32, or bf16 where that is what many rows of x are read in.
void DeviceLinearPerHead(CudaRun* run, const DeviceMatrix& w, int heads, const DeviceActivations& x,
                         const cuda::ActivationOut& y);
struct DeviceProduct {
  const DeviceMatrix* w = nullptr;
  float* y = nullptr;
};
// Products of one input, in as few launches as the types allow.
void DeviceLinears(CudaRun* run, const DeviceActivations& x,
                   std::initializer_list<DeviceProduct> products);

// Each reads x (normed) and writes y [rows, hidden_dim].
void DeviceMla(CudaRun* run, int layer, const DeviceLayer& weights, const DeviceLayerCache& cache,
               const DeviceActivations& x, float* y);
void DeviceGqa(CudaRun* run, const DeviceLayer& weights, const DeviceLayerCache& cache,
               const DeviceActivations& x, float* y);
void DeviceDeltaNet(CudaRun* run, const DeviceLayer& weights, const DeviceLayerCache& cache,
                    const DeviceActivations& x, float* y);
void DeviceDense(CudaRun* run, const DeviceFfn& weights, const DeviceActivations& x, float* y);
void DeviceMoe(CudaRun* run, int layer, const DeviceLayer& weights, const DeviceActivations& x,
               float* y);

}  // namespace packtrain
