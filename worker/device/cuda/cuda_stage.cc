#include "worker/device/cuda/cuda_stage.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "worker/graph/ubatch_check.h"

namespace packtrain {
namespace {

constexpr std::string_view kHidden = "hidden";
constexpr std::string_view kSelection = "selection";
constexpr size_t kMaxRecordings = 48;  // shapes of decode steps

}  // namespace

bool CudaStage::Streams(int rows) const {
  return run_.expert_stream != nullptr && StreamsExperts(spec_.streamed_rows, rows);
}

bool CudaStage::SelectionCrosses(int layer) const {
  return layer < config_.num_layers &&
         config_.layers[static_cast<size_t>(layer)].indexer == IndexerKind::kShared;
}

absl::Status CudaStage::Check(const Ubatch& ubatch, const Bundle& in) const {
  RETURN_IF_ERROR(CheckUbatch(ubatch,
                              {.num_slots = spec_.num_slots,
                               .num_pages = spec_.num_pages,
                               .num_snapshots = spec_.num_snapshots,
                               .max_tokens = spec_.max_tokens},
                              config_));
  if (static_cast<int>(ubatch.sequences.size()) > spec_.num_slots) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a ubatch of %d sequences, there are %d slots", ubatch.sequences.size(), spec_.num_slots));
  }
  if (spec_.embeds) return absl::OkStatus();
  RETURN_IF_ERROR(
      CheckBundleTensor(in, kHidden, ElementType::kF32, ubatch.rows, config_.hidden_dim));
  if (!SelectionCrosses(spec_.first_layer)) return absl::OkStatus();
  return CheckBundleTensor(in, kSelection, ElementType::kI32, ubatch.rows, config_.indexer.top_k);
}

size_t CudaStage::BatchBytes() const { return PlaceBatch(nullptr, spec_.max_tokens).second; }

std::pair<DeviceBatch, size_t> CudaStage::PlaceBatch(std::byte* base, int rows) const {
  size_t used = 0;
  const auto take = [&](auto** array, size_t count) {
    *array = reinterpret_cast<std::remove_reference_t<decltype(*array)>>(
        reinterpret_cast<uintptr_t>(base) + used);
    used += (count * sizeof(**array) + 63) / 64 * 64;
  };
  DeviceBatch batch;
  const auto n = static_cast<size_t>(rows), slots = static_cast<size_t>(spec_.num_slots);
  take(&batch.mailbox_step, 1);
  take(&batch.positions, n);
  take(&batch.table_offset, n);
  take(&batch.row_offset, slots + 1);
  take(&batch.slots, slots);
  take(&batch.embedded, spec_.embeds ? n * embedding_.row_bytes() : 0);
  take(&batch.page_tables, static_cast<size_t>(num_tables_));
  return {batch, used};
}

void CudaStage::UploadBatch(const Ubatch& ubatch) {
  // In the same places of both memories; those of a decode step depend on its rows alone.
  run_.batch = PlaceBatch(batch_, ubatch.rows).first;
  const DeviceBatch host = PlaceBatch(staging_->data(), ubatch.rows).first;
  int32_t* table = host.page_tables;
  uint8_t* embedded = host.embedded;
  int32_t row = 0;
  run_.sequences.clear();
  run_.rows = ubatch.rows;
  run_.streaming = Streams(ubatch.rows);
  *host.mailbox_step = remote_experts_.BeginStep(run_, ubatch.step_id);
  run_.max_position = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    const auto offset = static_cast<int32_t>(table - host.page_tables);
    const int32_t end = sequence.start + sequence.rows;
    table = std::copy_n(sequence.pages.begin(), PagesOf(end), table);
    host.row_offset[run_.sequences.size()] = row;
    host.slots[run_.sequences.size()] = sequence.slot;
    run_.sequences.push_back({.first = row, .rows = sequence.rows});
    for (int32_t i = 0; i < sequence.rows; ++i, ++row) {
      host.positions[row] = sequence.start + i;
      host.table_offset[row] = offset;
      if (!spec_.embeds) continue;
      const auto token = static_cast<size_t>(sequence.tokens[static_cast<size_t>(i)]);
      std::memcpy(embedded, embedding_.Rows(token, 1).data, embedding_.row_bytes());
      embedded += embedding_.row_bytes();
    }
    run_.max_position = std::max(run_.max_position, end - 1);
  }
  host.row_offset[run_.sequences.size()] = row;
  const auto* const begin = reinterpret_cast<const std::byte*>(host.mailbox_step);
  LAUNCH(&run_,
         cudaMemcpyAsync(batch_, begin,
                         static_cast<size_t>(reinterpret_cast<const std::byte*>(table) - begin),
                         cudaMemcpyHostToDevice, run_.stream));
  // Behind that copy: all to the device go one after the other.
  if (run_.streaming) expert_stream_.Begin(&run_);
  // Powers of two in decode steps, so that few shapes come.
  const auto most = PagesOf(std::min(config_.context_length, spec_.num_pages * kPagePositions));
  const size_t pages = PagesOf(run_.max_position + 1);
  run_.columns = static_cast<int>(run_.decode() ? std::min(std::bit_ceil(pages), most) : pages) *
                 kPagePositions;
}

void CudaStage::CopyState(int slot, int snapshot, bool save) {
  const DeltaNetConfig& delta = config_.delta_net;
  const size_t conv = Product(3, delta.conv_channels()),
               state = Product(delta.inner_dim(), delta.head_dim);
  for (const DeviceLayerCache& cache : caches_) {
    if (cache.conv == nullptr) continue;
    float* live_conv = cache.conv + conv * static_cast<size_t>(slot);
    float* live_state = cache.state + state * static_cast<size_t>(slot);
    if (snapshot < 0) {
      LAUNCH(&run_, cudaMemsetAsync(live_conv, 0, conv * sizeof(float), run_.stream));
      LAUNCH(&run_, cudaMemsetAsync(live_state, 0, state * sizeof(float), run_.stream));
      continue;
    }
    float* saved_conv = cache.saved_conv + conv * static_cast<size_t>(snapshot);
    float* saved_state = cache.saved_state + state * static_cast<size_t>(snapshot);
    LAUNCH(&run_, cudaMemcpyAsync(save ? saved_conv : live_conv, save ? live_conv : saved_conv,
                                  conv * sizeof(float), cudaMemcpyDeviceToDevice, run_.stream));
    LAUNCH(&run_, cudaMemcpyAsync(save ? saved_state : live_state, save ? live_state : saved_state,
                                  state * sizeof(float), cudaMemcpyDeviceToDevice, run_.stream));
  }
}

void CudaStage::PrepareState(const Ubatch& ubatch) {
  for (size_t first = 0; first < ubatch.page_copies.size(); first += kMaxPageCopies) {
    const size_t count = std::min<size_t>(kMaxPageCopies, ubatch.page_copies.size() - first);
    std::vector<int32_t> from, to;
    for (const PageCopy& copy : ubatch.page_copies.subspan(first, count)) {
      from.push_back(copy.from), to.push_back(copy.to);
    }
    LAUNCH(&run_, cudaStreamSynchronize(run_.stream));  // the staging memory is used again
    std::byte* pinned = staging_->data();
    for (const auto& [pages, device] :
         {std::pair(&from, copies_), {&to, copies_ + kMaxPageCopies}}) {
      const size_t bytes = count * sizeof(int32_t);
      std::memcpy(pinned, pages->data(), bytes);
      LAUNCH(&run_, cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, run_.stream));
      pinned += bytes;
    }
    const auto copy = [&](uint8_t* rows, int heads, int dim) {
      if (rows == nullptr) return;
      const size_t bytes =
          Product(kPagePositions, heads) * KvBytes(spec_.kv_cache, static_cast<size_t>(dim));
      LAUNCH(&run_, cuda::KvCopyPages(copies_, copies_ + kMaxPageCopies, static_cast<int>(count),
                                      bytes, rows, run_.stream));
    };
    for (const DeviceLayerCache& cache : caches_) {
      copy(cache.latent, 1, config_.mla.kv_lora_rank + config_.rope.dims);
      copy(cache.k, config_.gqa.num_kv_heads, config_.gqa.key_dim);
      copy(cache.v, config_.gqa.num_kv_heads, config_.gqa.value_dim);
      copy(cache.index_keys, 1, config_.indexer.head_dim);
    }
    LAUNCH(&run_, cudaStreamSynchronize(run_.stream));
  }
  for (const UbatchSequence& sequence : ubatch.sequences) {
    if (sequence.reset) CopyState(sequence.slot, -1, false);
    if (sequence.restore_snapshot >= 0) CopyState(sequence.slot, sequence.restore_snapshot, false);
  }
}

absl::Status CudaStage::ReadBundle(const Ubatch& ubatch, const Bundle& in) {
  const BundleTensor& tensor = *in.Find(kHidden);
  LAUNCH(&run_,
         cudaMemcpyAsync(hidden_, tensor.device == nullptr ? tensor.data.data() : tensor.device,
                         tensor.bytes(), cudaMemcpyDefault, run_.stream));
  if (!SelectionCrosses(spec_.first_layer) || !run_.sparse()) return absl::OkStatus();
  // From outside: only visible positions may be looked at.
  const BundleTensor& chosen = *in.Find(kSelection);
  const auto top_k = static_cast<size_t>(config_.indexer.top_k);
  size_t row = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    for (int32_t i = 0; i < sequence.rows; ++i, ++row) {
      const int32_t position = sequence.start + i;
      const size_t count = std::min(top_k, static_cast<size_t>(position) + 1);
      for (size_t k = 0; k < count; ++k) {
        const int32_t value = chosen.i32()[row * top_k + k];
        if (value < 0 || value > position) {
          return absl::InvalidArgumentError(
              absl::StrFormat("bundle tensor %s row %d: position %d, allowed 0 to %d", kSelection,
                              row, value, position));
        }
      }
    }
  }
  LAUNCH(&run_, cudaMemcpyAsync(run_.selection, chosen.data.data(), chosen.data.size(),
                                cudaMemcpyHostToDevice, run_.stream));
  return absl::OkStatus();
}

void CudaStage::RunLayers() {
  const ScratchScope scope(&run_);
  LAUNCH(&run_, cuda::RopeTable(run_.batch.positions, frequencies_, 1.0F, run_.rows,
                                config_.rope.dims / 2, run_.cos_sin, run_.stream));
  if (spec_.embeds) {
    LAUNCH(&run_,
           cuda::FindWeightKernels(embedding_.type)
               ->decode_f32(run_.batch.embedded, static_cast<size_t>(run_.rows) * embedding_.cols,
                            nullptr, 0, hidden_, run_.stream));
  }
  const DeviceActivations normed = run_.TakeActivations(run_.rows, config_.hidden_dim);
  const float* delta = nullptr;  // what the part before adds to the residual
  const auto norm = [&](const float* weight) {
    LAUNCH(&run_, cuda::RmsNorm(hidden_, config_.hidden_dim, delta, weight, config_.rms_eps,
                                run_.rows, config_.hidden_dim, normed.out(), run_.stream));
    delta = layer_out_;
  };
  for (size_t i = 0; i < layers_.size() && run_.status.ok(); ++i) {
    const int layer = spec_.first_layer + static_cast<int>(i);
    const LayerConfig& kinds = config_.layers[static_cast<size_t>(layer)];
    norm(layers_[i].attn_norm);
    switch (kinds.attention) {
      case AttentionKind::kMla:
        DeviceMla(&run_, layer, layers_[i], caches_[i], normed, layer_out_);
        break;
      case AttentionKind::kGqa:
        DeviceGqa(&run_, layers_[i], caches_[i], normed, layer_out_);
        break;
      case AttentionKind::kGatedDeltaNet:
        DeviceDeltaNet(&run_, layers_[i], caches_[i], normed, layer_out_);
        break;
    }
    norm(layers_[i].ffn_norm);
    if (kinds.ffn == FfnKind::kMoe) {
      DeviceMoe(&run_, layer, layers_[i], normed, layer_out_);
    } else {
      DeviceDense(&run_, layers_[i].dense, normed, layer_out_);
    }
  }
  LAUNCH(&run_,
         cuda::AddScaled(hidden_, layer_out_, nullptr, run_.rows, config_.hidden_dim, run_.stream));
}

absl::Status CudaStage::Record(CudaRecording* recording) {
  RETURN_IF_ERROR(recording->Begin(run_.stream));
  run_.recording = recording;
  RunLayers();
  run_.recording = nullptr;
  const absl::Status ended = recording->End();
  static_cast<void>(cudaGetLastError());  // launches look at it
  return run_.status.ok() ? ended : run_.status;
}

void CudaStage::RunDecodeStep() {
  const StepShape shape = {
      .rows = run_.rows,
      .sequences = config_.has_recurrent_state() ? static_cast<int>(run_.sequences.size()) : 0,
      .columns = run_.sparse() ? run_.columns : 0};
  const auto found = recordings_.find(shape);
  if (found == recordings_.end()) {
    // This also loads the kernels, which a recording may not.
    if (recordings_.size() == kMaxRecordings) recordings_.clear();
    recordings_[shape] = nullptr;
    RunLayers();
    return;
  }
  if (found->second == nullptr) {
    auto recording = std::make_unique<CudaRecording>();
    run_.status.Update(Record(recording.get()));
    if (!run_.status.ok()) return;
    found->second = std::move(recording);
  }
  run_.status.Update(found->second->Replay(run_.stream));
  run_.operations += found->second->nodes();
  remote_experts_.NoteReplay();
}

void CudaStage::Finish() {
  run_.status.Update(remote_experts_.Synchronize(run_.stream));
  run_.status.Update(remote_experts_.EndStep());
}

void CudaStage::ComputeLogits(std::span<const int> rows) {
  const ScratchScope scope(&run_);
  const int ubatch_rows = run_.rows;
  run_.rows = static_cast<int>(rows.size());
  const DeviceActivations normed = run_.TakeActivations(run_.rows, config_.hidden_dim);
  for (size_t i = 0; i < rows.size(); ++i) {
    DeviceActivations one = normed;
    one.f32 += i * static_cast<size_t>(normed.n);
    if (one.q8 != nullptr) one.q8 += i * cuda::Q8RowBytes(static_cast<size_t>(normed.n));
    float* hidden = hidden_ + Product(rows[i], config_.hidden_dim);
    LAUNCH(&run_, cuda::RmsNorm(hidden, config_.hidden_dim, nullptr, output_norm_, config_.rms_eps,
                                1, config_.hidden_dim, one.out(), run_.stream));
  }
  DeviceLinear(&run_, output_, normed, device_logits_);
  run_.rows = ubatch_rows;
}

absl::Status CudaStage::RunHead(const Ubatch& ubatch) {
  std::vector<int> wanted;
  int row = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    for (int i = 0; i < sequence.rows; ++i, ++row) {
      if (sequence.logits_all || (sequence.logits_last && i + 1 == sequence.rows))
        wanted.push_back(row);
    }
  }
  logits_view_ = {};
  sampler_.Clear();
  if (wanted.empty()) {
    Finish();
    return run_.status;
  }
  bool computed = false;
  if (sampler_.Takes(ubatch)) {
    ComputeLogits(wanted);
    sampler_.Enqueue(&run_, ubatch, device_logits_);
    Finish();
    if (!run_.status.ok() || sampler_.Finish(ubatch)) return run_.status;
    computed = true;
  }
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  // What comes in one piece stays where it arrives.
  const bool collect = wanted.size() > kDecodeRows;
  const size_t num_logits = wanted.size() * vocab;
  auto* const host = reinterpret_cast<float*>(logits_host_->data());
  if (collect && logits_.size() < num_logits) logits_.resize(num_logits);
  logits_view_ = {collect ? logits_.data() : host, num_logits};
  for (size_t first = 0; first < wanted.size(); first += kDecodeRows) {
    const size_t count = std::min<size_t>(kDecodeRows, wanted.size() - first);
    if (!computed) ComputeLogits(std::span(wanted).subspan(first, count));
    const size_t bytes = count * vocab * sizeof(float);
    LAUNCH(&run_,
           cudaMemcpyAsync(host, device_logits_, bytes, cudaMemcpyDeviceToHost, run_.stream));
    Finish();
    if (collect) std::memcpy(logits_.data() + first * vocab, host, bytes);
  }
  return run_.status;
}

absl::Status CudaStage::WriteBundle(const Ubatch& ubatch, Bundle* out) {
  out->step_id = ubatch.step_id;
  const auto rows = static_cast<uint32_t>(run_.rows);
  const auto cols = static_cast<uint32_t>(config_.hidden_dim);
  const size_t hidden_bytes = Product(run_.rows, config_.hidden_dim) * sizeof(float);
  const bool crosses = SelectionCrosses(spec_.last_layer);
  const auto top_k = static_cast<uint32_t>(config_.indexer.top_k);
  out->tensors.resize(crosses ? 2 : 1);
  std::byte* hidden = out->device_memory.data();
  if (out->OnDevice(hidden_bytes)) {
    out->ShapeOnDevice(0, kHidden, ElementType::kF32, rows, cols, hidden);
  } else {
    hidden = out->Shape(0, kHidden, ElementType::kF32, rows, cols)->data.data();
  }
  LAUNCH(&run_, cudaMemcpyAsync(hidden, hidden_, hidden_bytes, cudaMemcpyDefault, run_.stream));
  BundleTensor* chosen =
      crosses ? out->Shape(1, kSelection, ElementType::kI32, rows, top_k) : nullptr;
  if (crosses && run_.sparse()) {
    LAUNCH(&run_, cudaMemcpyAsync(chosen->data.data(), run_.selection, chosen->data.size(),
                                  cudaMemcpyDeviceToHost, run_.stream));
  }
  Finish();
  RETURN_IF_ERROR(run_.status);
  if (!crosses || run_.sparse()) return absl::OkStatus();
  size_t row = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    for (int32_t i = 0; i < sequence.rows; ++i, ++row) {
      for (int32_t k = 0; k < config_.indexer.top_k; ++k) {
        chosen->i32()[row * top_k + static_cast<size_t>(k)] = k <= sequence.start + i ? k : -1;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CudaStage::Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) {
  RETURN_IF_ERROR(Check(ubatch, in));
  RETURN_IF_CUDA(cudaSetDevice(options_.device));
  run_.status = absl::OkStatus();
  run_.scratch_used = 0;
  run_.operations = 0;
  ASSIGN_OR_RETURN(const bool other_mailboxes, remote_experts_.Follow());
  if (other_mailboxes) recordings_.clear();
  PrepareState(ubatch);
  UploadBatch(ubatch);
  absl::Status status = spec_.embeds ? absl::OkStatus() : ReadBundle(ubatch, in);
  if (status.ok()) {
    if (run_.decode()) {
      RunDecodeStep();
    } else {
      RunLayers();
    }
    for (const UbatchSequence& sequence : ubatch.sequences) {
      if (sequence.save_snapshot >= 0) CopyState(sequence.slot, sequence.save_snapshot, true);
    }
    status = spec_.has_head ? RunHead(ubatch) : WriteBundle(ubatch, out);
  }
  // Nothing of this ubatch may still run when the next one uses its buffers.
  if (!status.ok()) Finish();
  return status;
}

}  // namespace packtrain
