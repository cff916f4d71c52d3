// What a stage takes before it serves: memory, weights, buffers.

#include <cuda_runtime_api.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_stage.h"
#include "worker/ops/rope.h"

namespace packtrain {
namespace {

constexpr size_t kUnpackedElements = size_t{64} << 20;  // of prefill's unpacked weights
// What the CUDA context, kernels and graphs may take on top of our own allocations.
constexpr size_t kReserve = size_t{256} << 20;

}  // namespace

CudaStage::CudaStage(const ModelConfig& config, const StageSpec& spec,
                     const CudaStageOptions& options)
    : config_(config),
      spec_(spec),
      options_(options),
      run_(config),
      expert_stream_(config),
      remote_experts_(options.experts, config, spec.max_tokens) {
  run_.kv_type = static_cast<cuda::KvType>(spec.kv_cache);
  run_.remote_experts = &remote_experts_;
}

CudaStage::~CudaStage() {
  if (run_.stream != nullptr) {
    // Else this thread's calls would set up the first device, memory and all.
    cudaSetDevice(options_.device);
    cudaStreamSynchronize(run_.stream);
    cudaStreamDestroy(run_.stream);
  }
  if (run_.branch != nullptr) cudaStreamDestroy(run_.branch);
  if (run_.branch_begin != nullptr) cudaEventDestroy(run_.branch_begin);
  if (run_.branch_end != nullptr) cudaEventDestroy(run_.branch_end);
}

absl::StatusOr<std::unique_ptr<CudaStage>> CudaStage::Create(const ModelConfig& config,
                                                             const ModelTensors& tensors,
                                                             const WeightSource& source,
                                                             const StageSpec& spec,
                                                             const CudaStageOptions& options) {
  if (spec.first_layer < 0 || spec.first_layer >= spec.last_layer ||
      spec.last_layer > config.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a stage of layers [%d, %d) of a model of %d layers", spec.first_layer,
                        spec.last_layer, config.num_layers));
  }
  if (config.has_recurrent_state() &&
      (config.delta_net.conv_kernel != 4 || config.delta_net.head_dim > 128 ||
       config.delta_net.head_dim % 4 != 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("delta net with kernel %d and heads of %d; the GPU kernels have 4 and "
                        "multiples of 4 up to 128",
                        config.delta_net.conv_kernel, config.delta_net.head_dim));
  }
  std::unique_ptr<CudaStage> stage(new CudaStage(config, spec, options));
  RETURN_IF_ERROR(stage->Open(tensors, source));
  return stage;
}

absl::StatusOr<StageMemory> CudaStage::MemoryOf(const ModelConfig& config,
                                                const ModelTensors& tensors,
                                                const WeightSource& source, const StageSpec& spec,
                                                const CudaStageOptions& options) {
  CudaStage stage(config, spec, options);
  WeightUploader uploader;
  RETURN_IF_ERROR(stage.Plan(tensors, source, &uploader));
  return stage.memory_;
}

absl::Status CudaStage::Plan(const ModelTensors& tensors, const WeightSource& source,
                             WeightUploader* uploader) {
  RETURN_IF_ERROR(Bind(tensors, source, uploader));
  RETURN_IF_ERROR(uploader->status());
  PlanCache();
  PlanBuffers();
  memory_.weights = uploader->bytes();
  memory_.buffers = buffers_.bytes();
  return absl::OkStatus();
}

absl::Status CudaStage::Open(const ModelTensors& tensors, const WeightSource& source) {
  if (cudaSetDevice(options_.device) != cudaSuccess) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "there is no CUDA device %d: %s", options_.device, cudaGetErrorString(cudaGetLastError())));
  }
  RETURN_IF_CUDA(cudaStreamCreateWithFlags(&run_.stream, cudaStreamNonBlocking));
  RETURN_IF_CUDA(cudaStreamCreateWithFlags(&run_.branch, cudaStreamNonBlocking));
  RETURN_IF_CUDA(cudaEventCreateWithFlags(&run_.branch_begin, cudaEventDisableTiming));
  RETURN_IF_CUDA(cudaEventCreateWithFlags(&run_.branch_end, cudaEventDisableTiming));
  WeightUploader uploader;
  RETURN_IF_ERROR(Plan(tensors, source, &uploader));
  size_t free = 0, total = 0;
  RETURN_IF_CUDA(cudaMemGetInfo(&free, &total));
  const size_t wanted = memory_.weights + cache_memory_.bytes() + memory_.buffers + kReserve;
  if (wanted > free) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cuda:%d has %d MiB free; layers %d-%d need %d MiB: weights %d, KV cache "
                        "%d, recurrent state %d, buffers %d, "
                        "reserve %d",
                        options_.device, free >> 20, spec_.first_layer, spec_.last_layer - 1,
                        wanted >> 20, memory_.weights >> 20, memory_.kv >> 20,
                        memory_.recurrent >> 20, memory_.buffers >> 20, kReserve >> 20));
  }
  RETURN_IF_CUDA(cuda::PrepareDevice());
  RETURN_IF_ERROR(cache_memory_.Allocate("the KV cache", true));
  RETURN_IF_ERROR(buffers_.Allocate("buffers", false));
  RETURN_IF_CUDA(cudaMemset(
      run_.arrived, 0, Product(kDecodeRows, config_.delta_net.num_key_heads) * sizeof(int32_t)));
  RETURN_IF_ERROR(AllocateHost());
  if (run_.expert_stream != nullptr) RETURN_IF_ERROR(expert_stream_.Open());
  return uploader.Upload(&weights_, options_.progress);
}

absl::Status CudaStage::Bind(const ModelTensors& tensors, const WeightSource& source,
                             WeightUploader* uploader) {
  ASSIGN_OR_RETURN(const CpuKernels* types, SelectCpuKernels("scalar"));
  WeightBinder binder(config_, tensors, source, *types);
  layers_.resize(static_cast<size_t>(spec_.last_layer - spec_.first_layer));
  for (int layer = spec_.first_layer; layer < spec_.last_layer; ++layer) {
    DeviceLayer* target = &layers_[static_cast<size_t>(layer - spec_.first_layer)];
    uploader->Add(binder.Layer(layer), target);
    const bool moe = config_.layers[static_cast<size_t>(layer)].ffn == FfnKind::kMoe;
    if (!moe) continue;
    if (layer >= spec_.resident_first && layer < spec_.resident_last) {
      uploader->Add(binder.Experts(layer), &target->experts);
      continue;
    }
    if (!remote_experts_.has_client()) {
      return absl::FailedPreconditionError(
          absl::StrFormat("nobody serves the experts of layer %d", layer));
    }
    remote_experts_.Add(layer);
    if (StreamsExperts(spec_.streamed_rows, spec_.max_tokens)) {
      RETURN_IF_ERROR(BindStreamed(layer, tensors, *types));
    }
  }
  if (!expert_stream_.empty()) run_.expert_stream = &expert_stream_;
  if (spec_.embeds) embedding_ = binder.Matrix(TensorRole::kTokenEmbd, -1);
  if (spec_.has_head) {
    MatrixView output = binder.Matrix(TensorRole::kOutput, -1);
    if (output.empty()) output = binder.Matrix(TensorRole::kTokenEmbd, -1);
    uploader->Add(output, &output_);
    uploader->Add(binder.Vector(TensorRole::kOutputNorm, -1), &output_norm_);
  }
  return binder.status();
}

absl::Status CudaStage::BindStreamed(int layer, const ModelTensors& tensors,
                                     const CpuKernels& types) {
  for (const CudaStageOptions::Streamed& streamed : options_.streamed) {
    const auto holds = [&](const auto& r) { return layer >= r.first && layer < r.second; };
    if (std::none_of(streamed.layers.begin(), streamed.layers.end(), holds)) continue;
    WeightBinder binder(config_, tensors, *streamed.source, types);
    expert_stream_.Add(layer, binder.Experts(layer));
    return binder.status();
  }
  return absl::OkStatus();
}

void CudaStage::PlanCache() {
  const size_t positions = Product(spec_.num_pages, kPagePositions);
  const DeltaNetConfig& delta = config_.delta_net;
  caches_.resize(layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerConfig& layer = config_.layers[static_cast<size_t>(spec_.first_layer) + i];
    DeviceLayerCache* cache = &caches_[i];
    const auto add = [&](uint8_t** rows, int heads, int dim) {
      cache_memory_.Add(rows, positions * static_cast<size_t>(heads) *
                                  KvBytes(spec_.kv_cache, static_cast<size_t>(dim)));
    };
    switch (layer.attention) {
      case AttentionKind::kMla:
        add(&cache->latent, 1, config_.mla.kv_lora_rank + config_.rope.dims);
        break;
      case AttentionKind::kGqa:
        add(&cache->k, config_.gqa.num_kv_heads, config_.gqa.key_dim);
        add(&cache->v, config_.gqa.num_kv_heads, config_.gqa.value_dim);
        break;
      case AttentionKind::kGatedDeltaNet: {
        const size_t conv = Product(3, delta.conv_channels()),
                     state = Product(delta.inner_dim(), delta.head_dim);
        cache_memory_.Add(&cache->conv, conv * static_cast<size_t>(spec_.num_slots));
        cache_memory_.Add(&cache->state, state * static_cast<size_t>(spec_.num_slots));
        cache_memory_.Add(&cache->saved_conv, conv * static_cast<size_t>(spec_.num_snapshots));
        cache_memory_.Add(&cache->saved_state, state * static_cast<size_t>(spec_.num_snapshots));
        break;
      }
    }
    if (layer.indexer == IndexerKind::kFull) add(&cache->index_keys, 1, config_.indexer.head_dim);
    memory_.kv += positions * KvBytesPerPosition(config_, layer, spec_.kv_cache);
    memory_.recurrent +=
        RecurrentBytes(config_, layer) * static_cast<size_t>(spec_.num_slots + spec_.num_snapshots);
  }
}

void CudaStage::PlanBuffers() {
  const int rows = spec_.max_tokens;
  // Every slot may bring a table as long as the context, but no more pages than there are, shared
  // ones counted by each.
  num_tables_ =
      spec_.num_slots * static_cast<int>(std::min<size_t>(PagesOf(config_.context_length),
                                                          static_cast<size_t>(spec_.num_pages)));
  buffers_.Add(&hidden_, Product(rows, config_.hidden_dim));
  buffers_.Add(&layer_out_, Product(rows, config_.hidden_dim));
  buffers_.Add(&batch_, BatchBytes());
  buffers_.Add(&run_.cos_sin, Product(rows, config_.rope.dims));
  buffers_.Add(&frequencies_, static_cast<size_t>(config_.rope.dims / 2));
  buffers_.Add(&run_.selection, Product(rows, config_.indexer.top_k));
  buffers_.Add(&copies_, 2 * kMaxPageCopies);
  buffers_.Add(&run_.arrived, Product(kDecodeRows, config_.delta_net.num_key_heads));
  if (spec_.has_head) {
    buffers_.Add(&device_logits_, Product(kDecodeRows, config_.vocab_size));
    sampler_.Plan(&buffers_, config_.vocab_size);
  }
  if (rows > kDecodeRows) {
    run_.unpacked_capacity = kUnpackedElements;
    buffers_.Add(&run_.unpacked, run_.unpacked_capacity);
  }
  if (run_.expert_stream != nullptr) expert_stream_.Plan(spec_.max_tokens, &buffers_);
  buffers_.Add(&run_.scratch, MeasureScratch());
}

// Runs the layers on nothing, for the two ways a ubatch can be computed.
size_t CudaStage::MeasureScratch() {
  run_.measuring = true;
  run_.max_position = std::min(config_.context_length, spec_.num_pages * kPagePositions) - 1;
  run_.columns = static_cast<int>(PagesOf(run_.max_position + 1)) * kPagePositions;
  size_t bytes = 0;
  for (int rows : {spec_.max_tokens, std::min(spec_.max_tokens, kDecodeRows)}) {
    run_.rows = rows;
    run_.sequences = {{0, rows}};
    run_.streaming = Streams(rows);
    run_.scratch_used = run_.scratch_peak = 0;
    RunLayers();
    bytes = std::max(bytes, run_.scratch_peak);
  }
  run_.measuring = false;
  run_.scratch_used = 0;
  return bytes;
}

absl::Status CudaStage::AllocateHost() {
  const size_t copies = 2 * kMaxPageCopies * sizeof(int32_t);
  ASSIGN_OR_RETURN(staging_, PinnedMemory::Allocate(std::max(BatchBytes(), copies)));
  if (spec_.has_head) {
    ASSIGN_OR_RETURN(logits_host_, PinnedMemory::Allocate(Product(kDecodeRows, config_.vocab_size) *
                                                          sizeof(float)));
    RETURN_IF_ERROR(sampler_.Open());
  }
  const std::vector<double> frequencies = RopeFrequencies(config_.rope);
  RETURN_IF_CUDA(cudaMemcpy(frequencies_, frequencies.data(), frequencies.size() * sizeof(double),
                            cudaMemcpyHostToDevice));
  return absl::OkStatus();
}

}  // namespace packtrain
