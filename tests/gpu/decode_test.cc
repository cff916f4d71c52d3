// Kernels of decode steps. Aim: each gives the bits of the separate kernels that it stands for,
// which have references of their own; sampling follows the rules of worker/ops/sampler.

#include <cmath>
#include <memory>

#include "common/quant/type.h"
#include "tests/gpu/harness.h"
#include "worker/kernels/cuda/kernels.h"
#include "worker/ops/philox.h"

namespace packtrain::cuda {
namespace {

using namespace gputest;

constexpr KvType kCacheTypes[] = {KvType::kF32, KvType::kF16, KvType::kQ8_0, KvType::kQ4_1};

struct Activations {
  Activations(Random* random, int rows, int n) : q8(rows * Q8RowBytes(n)) {
    Device<float> x(random->Normals(size_t(rows) * n));
    CUDA_OK(Convert(x.get(), rows, n, n, {.q8 = q8.get()}, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
  }
  Device<uint8_t> q8;
};

GPU_TEST(FeedForwardOfPairsIsItsPartsBitForBit) {
  using enum TensorType;
  Random random(50);
  for (TensorType type : {kQ4_0,  kQ4_1,   kQ5_0,   kQ5_1,  kQ8_0,    kQ2_K,   kQ3_K,  kQ4_K,
                          kQ5_K,  kQ6_K,   kIQ1_S,  kIQ1_M, kIQ2_XXS, kIQ2_XS, kIQ2_S, kIQ3_XXS,
                          kIQ3_S, kIQ4_NL, kIQ4_XS, kTQ1_0, kTQ2_0,   kMXFP4,  kNVFP4}) {
    for (int n : {256, 512, 2048}) {
      int inner = n == 256 ? 512 : 256, hidden = 45, experts = 5, top_k = 3, tokens = 4,
          pairs = tokens * top_k;
      const TypeTraits& t = Traits(type);
      const WeightKernels* kernels = FindWeightKernels(type);
      auto blocks = [&](int rows, int cols) {
        return RandomBlocks(&random, int(type), size_t(rows) * cols / t.block_weights);
      };
      Device<uint8_t> gate(blocks(experts * inner, n)), up(blocks(experts * inner, n)),
          down(blocks(experts * hidden, inner));
      size_t up_stride = size_t(inner) * n / t.block_weights * t.block_bytes,
             down_stride = size_t(hidden) * inner / t.block_weights * t.block_bytes;
      Activations x(&random, tokens, n);
      std::vector<int32_t> ids(pairs);
      for (int32_t& id : ids) id = random.Below(experts + 1) - 1;
      ids[0] = 0;
      Device<int32_t> d_ids(ids);
      Device<float> weights(random.Normals(pairs)), shared(random.Normals(tokens * hidden)),
          logit(random.Normals(tokens));

      Device<float> g(pairs * inner), u(pairs * inner), values(pairs * inner);
      Device<uint8_t> q8(pairs * Q8RowBytes(inner));
      Device<float> by_pick(pairs * hidden), wanted(tokens * hidden);
      MatVecArgs args;
      args.parts[0] = {.w = gate.get(), .expert_stride = up_stride, .y = g.get(), .rows = inner};
      args.parts[1] = {.w = up.get(), .expert_stride = up_stride, .y = u.get(), .rows = inner};
      args.num_parts = 2;
      args.n = n;
      args.x = x.q8.get();
      args.tokens = pairs;
      args.experts = true;
      args.num_experts = experts;
      args.ids = d_ids.get();
      args.pairs_per_row = top_k;
      CUDA_OK(kernels->mat_vec(args, nullptr));
      CUDA_OK(SwiGlu(g.get(), u.get(), inner, pairs, inner, {.f32 = values.get(), .q8 = q8.get()},
                     nullptr));
      args.parts[0] = {
          .w = down.get(), .expert_stride = down_stride, .y = by_pick.get(), .rows = hidden};
      args.num_parts = 1;
      args.n = inner;
      args.x = q8.get();
      args.pairs_per_row = 1;
      CUDA_OK(kernels->mat_vec(args, nullptr));
      CUDA_OK(CombineExperts(by_pick.get(), d_ids.get(), nullptr, nullptr, weights.get(), tokens,
                             top_k, hidden, false, wanted.get(), nullptr));
      CUDA_OK(AddScaled(wanted.get(), shared.get(), logit.get(), tokens, hidden, nullptr));

      Device<float> fused_values(pairs * inner), got(tokens * hidden);
      Device<uint8_t> fused_q8(pairs * Q8RowBytes(inner));
      CUDA_OK(kernels->gate_up({.gate = gate.get(),
                                .up = up.get(),
                                .expert_stride = up_stride,
                                .ids = d_ids.get(),
                                .rows = inner,
                                .n = n,
                                .x = x.q8.get(),
                                .pairs = pairs,
                                .pairs_per_row = top_k,
                                .out = {.f32 = fused_values.get(), .q8 = fused_q8.get()}},
                               nullptr));
      CUDA_OK(kernels->down({.w = down.get(),
                             .expert_stride = down_stride,
                             .ids = d_ids.get(),
                             .weights = weights.get(),
                             .rows = hidden,
                             .n = inner,
                             .x = fused_q8.get(),
                             .tokens = tokens,
                             .top_k = top_k,
                             .shared = shared.get(),
                             .shared_logit = logit.get(),
                             .y = got.get()},
                            nullptr));
      std::string what = std::string(TypeName(type)) + " n " + std::to_string(n);
      std::vector<float> a = values.Get(), b = fused_values.Get();
      for (int p = 0; p < pairs; ++p) {
        if (ids[p] < 0) {
          Expect(std::isnan(b[size_t(p) * inner]), what + ": a void pair was written");
          continue;
        }
        Expect(std::memcmp(&a[size_t(p) * inner], &b[size_t(p) * inner], inner * 4) == 0,
               what + ": inner values of pair " + std::to_string(p));
      }
      Expect(SameBits(got.Get(), wanted.Get()), what + ": result");
    }
  }
}

GPU_TEST(DeltaNetStepIsItsPartsBitForBit) {
  struct Size {
    int kh, vh, dim;
  };
  for (Size z : {Size{16, 32, 128}, Size{2, 4, 64}, Size{2, 6, 32}}) {
    Random random(51);
    // Three sequences in slots 2, 0, 3 of 4; several steps, so that states are handed on.
    std::vector<int32_t> offsets = {0, 1, 4, 6}, slots = {2, 0, 3};
    int rows = 6, channels = (2 * z.kh + z.vh) * z.dim;
    size_t inner = size_t(z.vh) * z.dim, state_size = inner * z.dim * 4;
    std::vector<float> a = random.Normals(z.vh);
    for (float& v : a) v = -std::abs(v);
    Device<float> w(random.Normals(size_t(channels) * 4, 0.5f)), dt(random.Normals(z.vh)), d_a(a),
        norm(random.Normals(z.dim));
    std::vector<float> conv0 = random.Normals(size_t(4) * 3 * channels),
                       state0 = random.Normals(state_size, 0.1f);
    Device<float> conv_a(conv0), conv_b(conv0), state_a(state0), state_b(state0);
    Device<float> qkv(size_t(rows) * channels), out(rows * inner), values_a(rows * inner),
        values_b(rows * inner);
    Device<uint8_t> q8_a(rows * Q8RowBytes(inner)), q8_b(rows * Q8RowBytes(inner));
    Device<int32_t> d_offsets(offsets), d_slots(slots), arrived(std::vector<int32_t>(3 * z.kh, 0));
    for (int step = 0; step < 3; ++step) {
      Device<float> u(random.Normals(size_t(rows) * channels)), gate(random.Normals(rows * inner)),
          beta(random.Normals(rows * z.vh)), alpha(random.Normals(rows * z.vh));
      DeltaNetArgs args{.sequences = 3,
                        .rows = rows,
                        .row_offset = d_offsets.get(),
                        .slot = d_slots.get(),
                        .k_heads = z.kh,
                        .v_heads = z.vh,
                        .k_dim = z.dim,
                        .v_dim = z.dim,
                        .u = u.get(),
                        .conv_weight = w.get(),
                        .conv_state = conv_a.get(),
                        .beta_logit = beta.get(),
                        .alpha = alpha.get(),
                        .dt_bias = dt.get(),
                        .a = d_a.get(),
                        .state = state_a.get(),
                        .qkv = qkv.get(),
                        .out = out.get()};
      CUDA_OK(DeltaNet(args, nullptr));
      CUDA_OK(GatedRmsNorm(out.get(), gate.get(), norm.get(), args.eps, rows, z.vh, z.dim,
                           {.f32 = values_a.get(), .q8 = q8_a.get()}, nullptr));
      args.conv_state = conv_b.get();
      args.state = state_b.get();
      args.qkv = args.out = nullptr;
      CUDA_OK(DeltaNetStep(args,
                           {.z = gate.get(),
                            .norm_weight = norm.get(),
                            .arrived = arrived.get(),
                            .out = {.f32 = values_b.get(), .q8 = q8_b.get()}},
                           nullptr));
      Expect(SameBits(values_a.Get(), values_b.Get()), "values");
      Expect(SameBits(q8_a.Get(), q8_b.Get()), "quantised values");
      Expect(SameBits(conv_a.Get(), conv_b.Get()), "states of the convolution");
      Expect(SameBits(state_a.Get(), state_b.Get()), "states");
      Expect(arrived.Get() == std::vector<int32_t>(3 * z.kh, 0), "the counters are zeros again");
    }
  }
}

struct Placed {
  explicit Placed(int rows)
      : tables(std::vector<int32_t>{3, 0, 2, 1}),
        offset(std::vector<int32_t>(rows, 1)),
        positions(Positions(rows)),
        at{tables.get(), offset.get(), positions.get(), rows} {}
  static std::vector<int32_t> Positions(int rows) {
    std::vector<int32_t> positions;
    for (int r = 0; r < rows; ++r) positions.push_back(60 + r);
    return positions;
  }
  Device<int32_t> tables, offset, positions;
  KvRows at;
};

GPU_TEST(GqaHeadsAreTheirPartsBitForBit) {
  Random random(52);
  int rows = 5, heads = 6, kv_heads = 2, k_dim = 256, v_dim = 128, pairs = 32,
      head_stride = 2 * k_dim, stride = heads * head_stride;
  Placed placed(rows);
  Device<float> cos_sin(random.Normals(size_t(rows) * pairs * 2)), q_norm(random.Normals(k_dim)),
      k_norm(random.Normals(k_dim)), v(random.Normals(size_t(rows) * kv_heads * v_dim));
  std::vector<float> q0 = random.Normals(size_t(rows) * stride),
                     k0 = random.Normals(size_t(rows) * kv_heads * k_dim);
  for (KvType type : kCacheTypes) {
    for (bool normed : {true, false}) {
      for (RopeKind kind : {RopeKind::kNeox, RopeKind::kNorm}) {
        size_t k_bytes = KvRowBytes(type, kv_heads * k_dim),
               v_bytes = KvRowBytes(type, kv_heads * v_dim);
        Device<float> q(q0), k(k0), wanted(size_t(rows) * heads * k_dim), got(wanted.size());
        Device<uint8_t> k_a(256 * k_bytes), v_a(256 * v_bytes), k_b(256 * k_bytes),
            v_b(256 * v_bytes);
        GqaHeadsArgs args{.at = placed.at,
                          .q = q.get(),
                          .q_stride = stride,
                          .q_head_stride = head_stride,
                          .k = k.get(),
                          .v = v.get(),
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .k_dim = k_dim,
                          .v_dim = v_dim,
                          .q_norm = normed ? q_norm.get() : nullptr,
                          .k_norm = normed ? k_norm.get() : nullptr,
                          .eps = 1e-6f,
                          .rope = kind,
                          .cos_sin = cos_sin.get(),
                          .pairs = pairs,
                          .type = type,
                          .k_cache = k_b.get(),
                          .v_cache = v_b.get(),
                          .q_out = got.get()};
        CUDA_OK(GqaHeads(args, nullptr));
        if (normed) {
          CUDA_OK(RmsNorm(q.get(), head_stride, nullptr, q_norm.get(), 1e-6f, rows * heads, k_dim,
                          {.f32 = wanted.get()}, nullptr));
          CUDA_OK(RmsNorm(k.get(), k_dim, nullptr, k_norm.get(), 1e-6f, rows * kv_heads, k_dim,
                          {.f32 = k.get()}, nullptr));
        } else {
          CUDA_OK(
              Convert(q.get(), rows * heads, k_dim, head_stride, {.f32 = wanted.get()}, nullptr));
        }
        CUDA_OK(Rope(wanted.get(), rows, heads, heads * k_dim, k_dim, kind, cos_sin.get(), pairs,
                     nullptr));
        CUDA_OK(Rope(k.get(), rows, kv_heads, kv_heads * k_dim, k_dim, kind, cos_sin.get(), pairs,
                     nullptr));
        CUDA_OK(KvStore(placed.at, k.get(), kv_heads * k_dim, kv_heads * k_dim, type, k_a.get(),
                        nullptr));
        CUDA_OK(KvStore(placed.at, v.get(), kv_heads * v_dim, kv_heads * v_dim, type, v_a.get(),
                        nullptr));
        Expect(SameBits(got.Get(), wanted.Get()), "queries");
        Expect(SameBits(k_b.Get(), k_a.Get()), "stored keys");
        Expect(SameBits(v_b.Get(), v_a.Get()), "stored values");
      }
    }
  }
}

GPU_TEST(MlaHeadsAreTheirPartsBitForBit) {
  Random random(53);
  int rows = 3, heads = 5, nope = 192, pairs = 32, rope = 64, rank = 512, row_dim = rank + rope,
      head_dim = nope + rope;
  Placed placed(rows);
  Device<float> cos_sin(random.Normals(size_t(rows) * pairs * 2)), norm(random.Normals(rank));
  std::vector<float> q0 = random.Normals(size_t(rows) * heads * head_dim),
                     kv0 = random.Normals(size_t(rows) * row_dim);
  for (KvType type : kCacheTypes) {
    size_t bytes = 256 * KvRowBytes(type, row_dim), absorbed = size_t(rows) * heads * row_dim;
    Device<float> q(q0), kv(kv0), absorbed_a(absorbed), absorbed_b(absorbed),
        nope_a(size_t(rows) * heads * nope), nope_b(nope_a.size());
    Device<uint8_t> cache_a(bytes), cache_b(bytes), q8_a(rows * heads * Q8RowBytes(nope)),
        q8_b(q8_a.size());
    CUDA_OK(MlaHeads({.at = placed.at,
                      .q = q.get(),
                      .heads = heads,
                      .nope = nope,
                      .kv = kv.get(),
                      .rank = rank,
                      .kv_norm = norm.get(),
                      .eps = 1e-5f,
                      .rope = RopeKind::kNorm,
                      .cos_sin = cos_sin.get(),
                      .pairs = pairs,
                      .type = type,
                      .cache = cache_b.get(),
                      .q_nope = {.f32 = nope_b.get(), .q8 = q8_b.get()},
                      .absorbed = absorbed_b.get()},
                     nullptr));
    CUDA_OK(RmsNorm(kv.get(), row_dim, nullptr, norm.get(), 1e-5f, rows, rank,
                    {.f32 = kv.get(), .f32_stride = row_dim}, nullptr));
    CUDA_OK(Rope(kv.get() + rank, rows, 1, row_dim, row_dim, RopeKind::kNorm, cos_sin.get(), pairs,
                 nullptr));
    CUDA_OK(KvStore(placed.at, kv.get(), row_dim, row_dim, type, cache_a.get(), nullptr));
    CUDA_OK(Rope(q.get() + nope, rows, heads, heads * head_dim, head_dim, RopeKind::kNorm,
                 cos_sin.get(), pairs, nullptr));
    CUDA_OK(Convert(q.get(), rows * heads, nope, head_dim, {.f32 = nope_a.get(), .q8 = q8_a.get()},
                    nullptr));
    CUDA_OK(Convert(q.get() + nope, rows * heads, rope, head_dim,
                    {.f32 = absorbed_a.get() + rank, .f32_stride = row_dim}, nullptr));
    Expect(SameBits(nope_b.Get(), nope_a.Get()), "queries without rotation");
    Expect(SameBits(q8_b.Get(), q8_a.Get()), "the same, quantised");
    Expect(SameBits(absorbed_b.Get(), absorbed_a.Get()), "rotated queries");
    Expect(SameBits(cache_b.Get(), cache_a.Get()), "stored rows");
  }
}

GPU_TEST(AttentionPutsItsResultWhereAsked) {
  Random random(54);
  int rows = 4, heads = 8, kv_heads = 2, dim = 64, splits = 4, n = heads * dim;
  Placed placed(rows);
  size_t bytes = 256 * KvRowBytes(KvType::kF16, kv_heads * dim);
  Device<uint8_t> k(std::vector<uint8_t>(bytes, 0x2C)), v(std::vector<uint8_t>(bytes, 0x2E));
  Device<float> q(random.Normals(size_t(rows) * n)), plain(size_t(rows) * n),
      gate(random.Normals(size_t(rows) * heads * 2 * dim));
  Device<uint8_t> workspace(AttentionWorkspaceBytes(rows, heads, dim, splits));
  AttentionArgs args;
  args.at = placed.at;
  args.q = q.get();
  args.q_stride = n;
  args.q_head_stride = dim;
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.k_dim = args.v_dim = dim;
  args.scale = 0.1f;
  args.k_cache = k.get();
  args.v_cache = v.get();
  args.max_splits = splits;
  args.workspace = workspace.get();
  args.out = plain.get();
  CUDA_OK(Attention(args, nullptr));

  Device<uint8_t> q8_a(rows * heads * Q8RowBytes(dim)), q8_b(q8_a.size());
  CUDA_OK(Convert(plain.get(), rows * heads, dim, dim, {.q8 = q8_a.get()}, nullptr));
  args.out = nullptr;
  args.emit = {.values = {.q8 = q8_b.get()}, .per_head = true};
  CUDA_OK(Attention(args, nullptr));
  Expect(SameBits(q8_b.Get(), q8_a.Get()), "rows of heads");

  Device<uint8_t> gated_a(rows * Q8RowBytes(n)), gated_b(gated_a.size());
  CUDA_OK(SigmoidGate(plain.get(), gate.get() + dim, heads * 2 * dim, 2 * dim, dim, rows, n,
                      {.q8 = gated_a.get()}, nullptr));
  args.emit = {.values = {.q8 = gated_b.get()},
               .gate = gate.get() + dim,
               .gate_stride = heads * 2 * dim,
               .gate_head_stride = 2 * dim};
  CUDA_OK(Attention(args, nullptr));
  Expect(SameBits(gated_b.Get(), gated_a.Get()), "whole rows with a gate");
}

GPU_TEST(SamplingFollowsTheRules) {
  Random random(55);
  int rows = 4;
  for (int n : {154881, 1000, 3}) {
    std::vector<float> x = random.Normals(size_t(rows) * n, 3);
    x[1] = x[2] = 40;  // row 0 ties
    x[size_t(n) + 1] = NAN;
    x[size_t(n) + 2] = INFINITY;
    Device<float> logits(x);
    Device<uint8_t> workspace(SampleWorkspaceBytes()), out(rows * sizeof(SampledRow));
    for (int draw = 0; draw < 20; ++draw) {
      SampleArgs args;
      args.logits = logits.get();
      args.n = n;
      args.rows = rows;
      args.workspace = workspace.get();
      args.out = reinterpret_cast<SampledRow*>(out.get());
      for (int r = 0; r < rows; ++r) {
        args.row[r] = {.temperature = r == 0 ? 0.0f : 0.7f + 0.1f * static_cast<float>(r),
                       .draws = r >= 2,
                       .wants_sums = draw < 2,
                       .seed = 0x123456789abcull + draw,
                       .choice = static_cast<uint32_t>(r),
                       .position = static_cast<uint32_t>(7 * draw)};
      }
      CUDA_OK(Sample(args, nullptr));
      std::vector<uint8_t> bytes = out.Get();
      for (int r = 0; r < rows; ++r) {
        const SampleRow& row = args.row[r];
        SampledRow got;
        std::memcpy(&got, bytes.data() + r * sizeof(SampledRow), sizeof got);
        const float* l = x.data() + size_t(r) * n;
        auto clean = [](float v) {
          return std::isnan(v) ? -INFINITY : std::min(v, std::numeric_limits<float>::max());
        };
        int best = 0;
        double highest = -INFINITY, sum = 0, relative = 0, max = -INFINITY;
        for (int i = 0; i < n; ++i) max = std::max<double>(max, clean(l[i]));
        for (int i = 0; i < n; ++i) {
          double score = clean(l[i]);
          sum += std::exp(score - max);
          if (row.temperature > 0) relative += std::exp((score - max) / row.temperature);
          if (row.draws) {
            uint32_t word =
                Philox4x32({uint32_t(i) / 4, row.choice, row.position, 0}, row.seed)[i % 4];
            score = score / row.temperature - std::log(-std::log((word + 0.5) * 0x1p-32));
          }
          if (score > highest) highest = score, best = i;
        }
        std::string what = "row " + std::to_string(r) + " of " + std::to_string(n);
        Expect(got.id == best, what + ": token");
        if (!row.wants_sums) continue;
        ExpectNear(got.log_sum, max + std::log(sum), 1e-9 * std::abs(max + 1), what + ": log sum");
        if (row.temperature > 0)
          ExpectNear(got.relative_sum, relative, 1e-9 * relative, what + ": relative sum");
      }
    }
  }
}

}  // namespace
}  // namespace packtrain::cuda
