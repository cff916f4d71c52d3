// Times the kernels at the shapes of GLM-5.2 and Qwen3.6-35B-A3B: GB/s of weights and their share
// of this card's own measured read bandwidth, TFLOP/s of products. Results are checked by
// kernel_test.

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "common/quant/type.h"
#include "tests/gpu/harness.h"
#include "worker/kernels/cuda/kernels.h"
#include "worker/kernels/cuda/mailbox.h"

namespace packtrain::cuda {
namespace {

using namespace gputest;

cudaStream_t g_stream;
double g_copy_gbs;

// Median microseconds of one call; `calls` calls per graph, so that launch gaps look as in a step.
double Time(int calls, const std::function<void(int)>& call) {
  call(0);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_OK(cudaStreamBeginCapture(g_stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i);
  CUDA_OK(cudaStreamEndCapture(g_stream, &graph));
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, stop;
  CUDA_OK(cudaEventCreate(&start));
  CUDA_OK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    CUDA_OK(cudaEventRecord(start, g_stream));
    CUDA_OK(cudaGraphLaunch(exec, g_stream));
    CUDA_OK(cudaEventRecord(stop, g_stream));
    CUDA_OK(cudaEventSynchronize(stop));
    float ms;
    CUDA_OK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 2) times.push_back(ms);
  }
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return 1000.0 * times[times.size() / 2] / calls;
}

void Report(const std::string& what, double us, double bytes, double flops) {
  std::printf("%-58s %9.1f us", what.c_str(), us);
  if (bytes > 0)
    std::printf(" %7.0f GB/s %5.1f %%", bytes / us / 1e3, 100 * bytes / us / 1e3 / g_copy_gbs);
  if (flops > 0) std::printf(" %7.1f TFLOP/s", flops / us / 1e6);
  std::printf("\n");
}

// Experts of one MoE layer: `resident` experts, each call with other picks, so that L2 does not
// help.
void BenchExperts(TensorType type, int n, int rows, int parts, int picks, int resident,
                  const char* shape) {
  Random random(1);
  const TypeTraits& t = Traits(type);
  size_t expert_bytes = RowBytes(type, n) * rows;
  std::vector<uint8_t> one = RandomBlocks(&random, int(type), expert_bytes / t.block_bytes);
  Device<uint8_t> w(expert_bytes * resident * parts);
  for (int e = 0; e < resident * parts; ++e) {
    CUDA_OK(
        cudaMemcpy(w.get() + e * expert_bytes, one.data(), expert_bytes, cudaMemcpyHostToDevice));
  }
  int x_rows = parts == 2 ? 1 : picks;
  Device<float> x(random.Normals(size_t(x_rows) * n));
  Device<uint8_t> q8(x_rows * Q8RowBytes(n));
  CUDA_OK(Convert(x.get(), x_rows, n, n, {.q8 = q8.get()}, g_stream));
  int calls = resident / picks;
  std::vector<int32_t> ids(resident);
  for (int i = 0; i < resident; ++i) ids[i] = i;
  Device<int32_t> d_ids(ids);
  Device<float> y(size_t(parts) * picks * rows);
  double us = Time(calls, [&](int i) {
    MatVecArgs args;
    for (int p = 0; p < parts; ++p) {
      args.parts[p] = {.w = w.get() + p * resident * expert_bytes,
                       .expert_stride = expert_bytes,
                       .y = y.get() + size_t(p) * picks * rows,
                       .rows = rows};
    }
    args.num_parts = parts;
    args.n = n;
    args.x = q8.get();
    args.tokens = picks;
    args.experts = true;
    args.num_experts = resident;
    args.ids = d_ids.get() + i * picks;
    args.pairs_per_row = parts == 2 ? picks : 1;
    CUDA_OK(FindWeightKernels(type)->mat_vec(args, g_stream));
  });
  Report(std::string(shape) + " experts " + std::string(TypeName(type)), us,
         double(expert_bytes) * picks * parts, 0);
}

void BenchDense(TensorType type, int n, int rows, int tokens, const char* shape) {
  Random random(1);
  const TypeTraits& t = Traits(type);
  size_t bytes = RowBytes(type, n) * rows;
  int copies = static_cast<int>(std::max<size_t>(2, (size_t{400} << 20) / bytes));
  copies = std::min(copies, 40);
  std::vector<uint8_t> one = RandomBlocks(&random, int(type), bytes / t.block_bytes);
  Device<uint8_t> w(bytes * copies);
  for (int i = 0; i < copies; ++i)
    CUDA_OK(cudaMemcpy(w.get() + i * bytes, one.data(), bytes, cudaMemcpyHostToDevice));
  const WeightKernels* kernels = FindWeightKernels(type);
  Device<float> x(random.Normals(size_t(tokens) * n)), y(size_t(tokens) * rows);
  Device<uint8_t> q8(tokens * Q8RowBytes(n));
  CUDA_OK(Convert(x.get(), tokens, n, n, {.q8 = q8.get()}, g_stream));
  double us = Time(copies, [&](int i) {
    MatVecArgs args;
    args.parts[0] = {.w = w.get() + i * bytes, .y = y.get(), .rows = rows};
    args.n = n;
    args.x = kernels->f32_activations ? static_cast<const void*>(x.get()) : q8.get();
    args.tokens = tokens;
    CUDA_OK(kernels->mat_vec(args, g_stream));
  });
  Report(std::string(shape) + " " + std::string(TypeName(type)) + " " + std::to_string(rows) +
             " x " + std::to_string(n) + ", " + std::to_string(tokens) + " tokens",
         us, double(bytes), 0);
}

void BenchDecode(TensorType type) {
  Random random(1);
  int n = 6144, rows = 2048 * 4;
  std::vector<uint8_t> bytes =
      RandomBlocks(&random, int(type), RowBytes(type, n) / Traits(type).block_bytes * rows);
  Device<uint8_t> w(bytes);
  Device<uint16_t> out(size_t(n) * rows);
  double us = Time(10, [&](int) {
    CUDA_OK(FindWeightKernels(type)->decode_bf16(w.get(), size_t(n) * rows, out.get(), g_stream));
  });
  Report("unpack to bf16 " + std::string(TypeName(type)), us, double(bytes.size()) + 2.0 * n * rows,
         0);
}

// Experts of one layer with `tokens` picks each, alternately a little fewer and more: unpacked on
// the way, and unpacked first. A single matrix is then multiplied by cuBLASLt.
void BenchMatMul(TensorType type, int n, int rows, int parts, int experts, int tokens,
                 const char* shape) {
  Random random(1);
  const size_t bytes = RowBytes(type, n) * rows;
  std::vector<uint8_t> one = RandomBlocks(&random, int(type), bytes / Traits(type).block_bytes);
  Device<uint8_t> w(bytes * parts * experts);
  for (int e = 0; e < parts * experts; ++e)
    CUDA_OK(cudaMemcpy(w.get() + e * bytes, one.data(), bytes, cudaMemcpyHostToDevice));
  std::vector<int32_t> offsets = {0};
  for (int e = 0; e < experts; ++e)
    offsets.push_back(offsets.back() + tokens + (experts > 1 ? (e % 2 * 2 - 1) * tokens / 4 : 0));
  const int total = tokens * experts;
  const WeightKernels* kernels = FindWeightKernels(type);
  Device<uint16_t> x(std::vector<uint16_t>(size_t(total) * n, 0x3C00));
  Device<int32_t> d_offsets(offsets);
  Device<float> y(size_t(total) * rows * parts);
  const double flops = 2.0 * total * n * rows * parts;
  const std::string name = std::string(shape) + " " + std::string(TypeName(type)) + ", " +
                           std::to_string(tokens) + " tokens";
  double us = Time(4, [&](int) {
    MatMulArgs args{.num_parts = parts,
                    .n = n,
                    .x = x.get(),
                    .groups = experts,
                    .offsets = d_offsets.get(),
                    .tokens = total};
    for (int p = 0; p < parts; ++p) {
      args.parts[p] = {.w = w.get() + p * experts * bytes,
                       .expert_stride = bytes,
                       .y = y.get() + size_t(p) * total * rows,
                       .rows = rows};
    }
    CUDA_OK(kernels->mat_mul(args, g_stream));
  });
  Report(name, us, double(bytes) * parts * experts, flops);
  const int at_once = std::min(experts, std::max(1, (64 << 20) / (n * rows)));
  Device<uint16_t> unpacked(size_t(at_once) * n * rows);
  us = Time(4, [&](int) {
    for (int e = 0; e < experts * parts; e += at_once) {
      CUDA_OK(kernels->decode_bf16(w.get() + e * bytes, size_t(at_once) * n * rows, unpacked.get(),
                                   g_stream));
      const auto gemm = experts == 1 ? &GemmBlasLt : &Gemm;
      CUDA_OK(gemm({.a = x.get(),
                    .lda = n,
                    .b = unpacked.get(),
                    .b_group_stride = size_t(n) * rows,
                    .c = y.get(),
                    .ldc = rows,
                    .groups = at_once,
                    .offsets = experts == 1 ? nullptr : d_offsets.get() + e % experts,
                    .m = total,
                    .n = rows,
                    .k = n},
                   g_stream));
    }
  });
  Report(name + ", unpacked first", us, double(bytes) * parts * experts, flops);
}

void BenchGemm(int m, int n, int k) {
  Random random(1);
  std::vector<uint16_t> a(size_t(m) * k), b(size_t(n) * k);
  for (auto& v : a) v = static_cast<uint16_t>(0x3F00 + (random.Bits() & 0x80FF));
  for (auto& v : b) v = static_cast<uint16_t>(0x3F00 + (random.Bits() & 0x80FF));
  Device<uint16_t> d_a(a), d_b(b);
  Device<float> c(size_t(m) * n);
  double us = Time(5, [&](int) {
    CUDA_OK(Gemm(
        {.a = d_a.get(), .lda = k, .b = d_b.get(), .c = c.get(), .ldc = n, .m = m, .n = n, .k = k},
        g_stream));
  });
  const std::string shape =
      std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k);
  Report("gemm " + shape, us, 0, 2.0 * m * n * k);
  us = Time(5, [&](int) {
    CUDA_OK(GemmBlasLt(
        {.a = d_a.get(), .lda = k, .b = d_b.get(), .c = c.get(), .ldc = n, .m = m, .n = n, .k = k},
        g_stream));
  });
  Report("gemm by cuBLASLt " + shape, us, 0, 2.0 * m * n * k);
}

void BenchAttention(int heads, int kv_heads, int k_dim, int v_dim, bool shared, KvType type,
                    int context, int rows, int splits, bool consecutive, int selection,
                    const char* shape) {
  Random random(1);
  int pages = context / 64 + 1;
  size_t k_bytes = KvRowBytes(type, size_t(kv_heads) * k_dim),
         v_bytes = KvRowBytes(type, size_t(kv_heads) * v_dim);
  Device<uint8_t> k(std::vector<uint8_t>(k_bytes * 64 * pages, 0x2C)),
      v(std::vector<uint8_t>(v_bytes * 64 * pages, 0x2C));
  std::vector<int32_t> table(pages), offset(rows, 0), position(rows);
  for (int i = 0; i < pages; ++i) table[i] = i;
  for (int r = 0; r < rows; ++r) position[r] = consecutive ? context - rows + r : context - 1;
  Device<int32_t> d_table(table), d_offset(offset), d_position(position);
  Device<float> q(random.Normals(size_t(rows) * heads * k_dim)), out(size_t(rows) * heads * v_dim);
  Device<uint8_t> workspace(AttentionWorkspaceBytes(rows, heads, v_dim, splits));
  std::vector<int32_t> chosen(size_t(std::max(1, selection)) * rows);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < selection; ++i)
      chosen[size_t(r) * selection + i] =
          static_cast<int>(int64_t{i} * (position[r] + 1) / selection);
  }
  Device<int32_t> d_selection(chosen);
  AttentionArgs args;
  args.at = {d_table.get(), d_offset.get(), d_position.get(), rows};
  args.q = q.get();
  args.q_stride = heads * k_dim;
  args.q_head_stride = k_dim;
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.k_dim = k_dim;
  args.v_dim = v_dim;
  args.scale = 0.05f;
  args.type = type;
  args.k_cache = k.get();
  args.v_cache = shared ? nullptr : v.get();
  args.selection = selection > 0 ? d_selection.get() : nullptr;
  args.selection_stride = selection;
  args.consecutive = consecutive;
  args.max_splits = splits;
  args.workspace = workspace.get();
  args.out = out.get();
  double us = Time(5, [&](int) { CUDA_OK(Attention(args, g_stream)); });
  double entries = 0;
  for (int r = 0; r < rows; ++r) entries += selection > 0 ? selection : position[r] + 1;
  Report(std::string(shape) + ", context " + std::to_string(context) + ", rows " +
             std::to_string(rows) + ", splits " + std::to_string(splits),
         us, 0, entries * heads * 2 * (k_dim + v_dim));
}

void BenchDeltaNet(int rows) {
  Random random(1);
  int channels = 8192;
  Device<float> u(random.Normals(size_t(rows) * channels)), w(random.Normals(channels * 4)),
      conv(random.Normals(3 * channels));
  Device<float> beta(random.Normals(rows * 32)), alpha(random.Normals(rows * 32)),
      dt(random.Normals(32)), a(std::vector<float>(32, -1));
  Device<float> state(std::vector<float>(32 * 128 * 128, 0.0f)), qkv(size_t(rows) * channels),
      out(size_t(rows) * 4096);
  Device<int32_t> offset(std::vector<int32_t>{0, rows}), slot(std::vector<int32_t>{0}),
      position(std::vector<int32_t>(rows, 0));
  DeltaNetArgs args{.sequences = 1,
                    .rows = rows,
                    .row_offset = offset.get(),
                    .slot = slot.get(),
                    .k_heads = 16,
                    .v_heads = 32,
                    .k_dim = 128,
                    .v_dim = 128,
                    .longest = rows,
                    .position = position.get(),
                    .u = u.get(),
                    .conv_weight = w.get(),
                    .conv_state = conv.get(),
                    .beta_logit = beta.get(),
                    .alpha = alpha.get(),
                    .dt_bias = dt.get(),
                    .a = a.get(),
                    .state = state.get(),
                    .qkv = qkv.get(),
                    .out = out.get()};
  double us = Time(5, [&](int) { CUDA_OK(DeltaNet(args, g_stream)); });
  Report("delta net, rows " + std::to_string(rows), us, 0, 0);
}

void BenchIndexer(int context, int rows) {
  Random random(1);
  int pages = context / 64 + 1;
  Device<uint8_t> cache(std::vector<uint8_t>(size_t(pages) * 64 * 256, 0x2C));
  std::vector<int32_t> table(pages), offset(rows, 0), position(rows);
  for (int i = 0; i < pages; ++i) table[i] = i;
  for (int r = 0; r < rows; ++r) position[r] = context - rows + r;
  Device<int32_t> d_table(table), d_offset(offset), d_position(position),
      chosen(size_t(rows) * 2048);
  Device<float> q(random.Normals(size_t(rows) * 32 * 128)), w(random.Normals(size_t(rows) * 32)),
      scores(size_t(rows) * context);
  double us = Time(5, [&](int) {
    CUDA_OK(IndexerScores({.at = {d_table.get(), d_offset.get(), d_position.get(), rows},
                           .q = q.get(),
                           .w = w.get(),
                           .heads = 32,
                           .dim = 128,
                           .type = KvType::kF16,
                           .cache = cache.get(),
                           .columns = context,
                           .scores = scores.get()},
                          g_stream));
  });
  Report("indexer scores, context " + std::to_string(context) + ", rows " + std::to_string(rows),
         us, 0, 2.0 * 32 * 128 * context * rows);
  us = Time(5, [&](int) {
    CUDA_OK(TopK(scores.get(), rows, context, d_position.get(), 2048, chosen.get(), g_stream));
  });
  Report("top 2048, context " + std::to_string(context) + ", rows " + std::to_string(rows), us, 0,
         0);
}

void BenchSmall() {
  Random random(1);
  int n = 6144;
  Device<float> h(random.Normals(n)), d(random.Normals(n)), w(random.Normals(n));
  Device<uint8_t> q8(Q8RowBytes(n));
  Report("rms norm + q8, 6144",
         Time(50,
              [&](int) {
                CUDA_OK(
                    RmsNorm(h.get(), n, d.get(), w.get(), 1e-5f, 1, n, {.q8 = q8.get()}, g_stream));
              }),
         0, 0);
  Device<float> logits(random.Normals(256)), weights(8);
  Device<int32_t> ids(8);
  RouterArgs router{.logits = logits.get(),
                    .tokens = 1,
                    .num_experts = 256,
                    .top_k = 8,
                    .sigmoid = true,
                    .normalize = true,
                    .ids = ids.get(),
                    .weights = weights.get()};
  Report("router 256, 8", Time(50, [&](int) { CUDA_OK(Router(router, g_stream)); }), 0, 0);
  Report(
      "swiglu + q8, 8 x 2048",
      Time(50,
           [&](int) { CUDA_OK(SwiGlu(h.get(), d.get(), 0, 8, 2048, {.q8 = q8.get()}, g_stream)); }),
      0, 0);
}

}  // namespace

// A layer's exchange with an experts worker that answers at once: what the step pays beside the
// worker's own time.
void BenchMailbox(int rows) {
  constexpr int kN = 6144, kTopK = 8;
  struct Words {
    alignas(64) uint64_t request;
    uint32_t call[3];
    alignas(64) uint64_t reply;
    uint32_t code, closed;
    alignas(64) float x[8 * kN], y[8 * kN], weights[64];
    int32_t ids[64];
  };
  Words* words;
  MailboxReport* report;
  CUDA_OK(cudaHostAlloc(&words, sizeof(Words), cudaHostAllocMapped));
  CUDA_OK(cudaHostAlloc(&report, sizeof(MailboxReport), cudaHostAllocMapped));
  std::memset(words, 0, sizeof(Words));
  *report = {};
  Device<MailboxStep> step(std::vector<MailboxStep>(1));
  Device<float> x(size_t(rows) * kN), y(size_t(rows) * kN), weights(size_t(rows) * kTopK);
  Device<int32_t> ids(size_t(rows) * kTopK);
  std::atomic<bool> stop = false;
  std::thread worker([&] {
    std::atomic_ref request(words->request), reply(words->reply);
    while (!stop) {
      if (const uint64_t word = request.load(); word != reply.load()) reply.store(word);
    }
  });
  const double us = Time(60, [&](int layer) {
    const MailboxRequest request = {.mailbox = {.request = &words->request,
                                                .call = words->call,
                                                .reply = &words->reply,
                                                .code = &words->code,
                                                .closed = &words->closed,
                                                .x = words->x,
                                                .ids = words->ids,
                                                .weights = words->weights,
                                                .y = words->y},
                                    .step = step.get(),
                                    .report = report,
                                    .word = uint64_t(layer) + 1,
                                    .layer = layer,
                                    .rows = rows,
                                    .top_k = kTopK,
                                    .n = kN,
                                    .x = x.get(),
                                    .ids = ids.get(),
                                    .weights = weights.get(),
                                    .timeout_ns = 1'000'000'000};
    CUDA_OK(PostExperts(request, g_stream));
    CUDA_OK(AwaitExperts(request, g_stream));
    CUDA_OK(TakeExperts(request, nullptr, nullptr, y.get(), g_stream));
  });
  stop = true;
  worker.join();
  if (report->failure != MailboxFailure::kNone) std::printf("the exchange failed\n");
  Report("experts exchange, " + std::to_string(rows) + " rows of 6144", us, 0, 0);
  CUDA_OK(cudaFreeHost(words));
  CUDA_OK(cudaFreeHost(report));
}

int Main() {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  CUDA_OK(PrepareDevice());
  CUDA_OK(cudaStreamCreate(&g_stream));
  {
    size_t bytes = size_t{4} << 30;
    Device<uint8_t> a(bytes), b(bytes);
    auto copy = [&](int) {
      CUDA_OK(cudaMemcpyAsync(b.get(), a.get(), bytes, cudaMemcpyDeviceToDevice, g_stream));
    };
    Time(40, copy);  // until the clocks are up
    double us = Time(3, copy);
    g_copy_gbs = 2.0 * bytes / us / 1e3;
    Report("copy (read + written)", us, 2.0 * bytes, 0);
  }
  using enum TensorType;
  for (TensorType type : {kIQ2_XXS, kIQ2_XS, kIQ2_S, kIQ3_XXS, kIQ3_S, kIQ1_S, kIQ1_M, kIQ4_XS,
                          kIQ4_NL, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kQ8_0, kQ4_0, kMXFP4}) {
    BenchExperts(type, 6144, 2048, 2, 8, 64, "GLM gate+up");
    BenchExperts(type, 2048, 6144, 1, 8, 128, "GLM down");
  }
  for (TensorType type : {kQ4_K, kQ6_K}) {
    BenchExperts(type, 2048, 512, 2, 8, 256, "Qwen gate+up");
  }
  BenchExperts(kQ4_0, 512, 2048, 1, 8, 256, "Qwen down");
  BenchExperts(kQ6_K, 512, 2048, 1, 8, 256, "Qwen down");
  for (int tokens : {1, 2, 4, 8}) BenchDense(kQ5_K, 16384, 6144, tokens, "GLM o");
  BenchDense(kQ5_K, 2048, 16384, 1, "GLM q_b");
  BenchDense(kQ6_K, 6144, 2048, 1, "GLM q_a");
  BenchDense(kQ6_K, 6144, 576, 1, "GLM kv_a");
  BenchDense(kQ6_K, 6144, 154880, 1, "GLM head");
  BenchDense(kF32, 6144, 256, 1, "GLM router");
  BenchDense(kQ6_K, 2048, 8192, 1, "Qwen qkv");
  BenchDense(kQ6_K, 4096, 2048, 1, "Qwen out");
  BenchSmall();
  for (int rows : {1, 4, 8}) BenchMailbox(rows);
  for (TensorType type : {kIQ2_XS, kIQ3_XXS, kQ4_K, kQ6_K}) BenchDecode(type);
  for (int tokens : {16, 64, 256}) {
    BenchMatMul(kQ4_K, 2048, 512, 2, 256, tokens, "Qwen gate+up");
    BenchMatMul(kQ6_K, 512, 2048, 1, 256, tokens, "Qwen down");
    BenchMatMul(kIQ2_XS, 6144, 2048, 2, 64, tokens, "GLM gate+up");
    BenchMatMul(kIQ3_XXS, 2048, 6144, 1, 64, tokens, "GLM down");
  }
  for (int tokens : {32, 128, 512, 2048}) {
    BenchMatMul(kQ8_0, 2048, 8192, 1, 1, tokens, "Qwen qkv");
    BenchMatMul(kQ5_K, 16384, 6144, 1, 1, tokens, "GLM o");
  }
  for (int m : {512, 2048, 8192}) {
    BenchGemm(m, 6144, 16384);
    BenchGemm(m, 16384, 2048);
    BenchGemm(m, 2048, 4096);
  }
  BenchGemm(256, 2048, 6144);
  for (int context : {512, 2048, 16384})
    BenchAttention(64, 1, 576, 512, true, KvType::kF16, context, 1, 32, false, 0, "MLA decode f16");
  BenchAttention(64, 1, 576, 512, true, KvType::kQ8_0, 16384, 1, 32, false, 0, "MLA decode q8_0");
  BenchAttention(64, 1, 576, 512, true, KvType::kF16, 65536, 1, 32, false, 2048,
                 "MLA sparse decode");
  BenchAttention(64, 1, 576, 512, true, KvType::kF16, 2048, 2048, 1, true, 0, "MLA prefill");
  BenchAttention(64, 1, 576, 512, true, KvType::kF16, 8192, 1024, 1, true, 2048,
                 "MLA sparse prefill");
  BenchAttention(16, 2, 256, 256, false, KvType::kF16, 4096, 1, 32, false, 0, "GQA decode");
  BenchAttention(16, 2, 256, 256, false, KvType::kF16, 2048, 2048, 1, true, 0, "GQA prefill");
  BenchIndexer(16384, 1);
  BenchIndexer(8192, 1024);
  BenchDeltaNet(1);
  BenchDeltaNet(64);
  BenchDeltaNet(512);
  BenchDeltaNet(8192);
  return 0;
}

}  // namespace packtrain::cuda

int main() { return packtrain::cuda::Main(); }
