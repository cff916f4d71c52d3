// Everything between the matrices, and the matrix products of prefill, against double sums.

#include <memory>
#include <numeric>

#include "common/quant/codec.h"
#include "tests/gpu/harness.h"
#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {
namespace {

using namespace gputest;

double Silu(double x) { return x / (1 + std::exp(-x)); }
double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

GPU_TEST(NormsMatchDoubleSums) {
  Random random(10);
  for (int n : {32, 128, 512, 2048, 6144}) {
    int rows = 3, stride = n + 64;
    std::vector<float> h = random.Normals(size_t(rows) * stride, 5),
                       delta = random.Normals(size_t(rows) * n);
    std::vector<float> weight = random.Normals(n), bias = random.Normals(n);
    Device<float> d_h(h), d_delta(delta), d_weight(weight), d_bias(bias), y(size_t(rows) * n),
        z(size_t(rows) * stride);
    CUDA_OK(LayerNorm(d_h.get(), z.get(), stride, d_weight.get(), d_bias.get(), 1e-6f, rows, n,
                      nullptr));
    CUDA_OK(RmsNorm(d_h.get(), stride, d_delta.get(), d_weight.get(), 1e-5f, rows, n,
                    {.f32 = y.get()}, nullptr));
    std::vector<float> got = y.Get(), layer = z.Get(), sum_h = d_h.Get();
    for (int r = 0; r < rows; ++r) {
      double sum = 0, square = 0, mean = 0;
      for (int i = 0; i < n; ++i) {
        float v = h[size_t(r) * stride + i] + delta[size_t(r) * n + i];
        Expect(sum_h[size_t(r) * stride + i] == v, "residual");
        square += double{v} * v;
        mean += h[size_t(r) * stride + i];
      }
      mean /= n;
      for (int i = 0; i < n; ++i) sum += std::pow(h[size_t(r) * stride + i] - mean, 2);
      for (int i = 0; i < n; ++i) {
        double rms = sum_h[size_t(r) * stride + i] / std::sqrt(square / n + 1e-5) * weight[i];
        ExpectNear(got[size_t(r) * n + i], rms, 1e-6 * (1 + std::abs(rms)), "rms");
        double ln =
            (h[size_t(r) * stride + i] - mean) / std::sqrt(sum / n + 1e-6) * weight[i] + bias[i];
        ExpectNear(layer[size_t(r) * stride + i], ln, 3e-6 * (1 + std::abs(ln)), "layer norm");
      }
    }
  }
}

GPU_TEST(ActivationsMatchDoubles) {
  Random random(11);
  int rows = 3, n = 320;
  std::vector<float> gate = random.Normals(size_t(rows) * n, 4),
                     up = random.Normals(size_t(rows) * n);
  Device<float> d_gate(gate), d_up(up), y(size_t(rows) * n), s(size_t(rows) * n), added(up);
  std::vector<float> logit = random.Normals(rows);
  Device<float> d_logit(logit);
  CUDA_OK(SwiGlu(d_gate.get(), d_up.get(), n, rows, n, {.f32 = y.get()}, nullptr));
  // The gate of head j lies 64 * (2 j + 1) into the row of a twice as wide projection.
  std::vector<float> wide = random.Normals(size_t(rows) * 2 * n);
  Device<float> d_wide(wide);
  CUDA_OK(SigmoidGate(d_up.get(), d_wide.get() + 64, 2 * n, 128, 64, rows, n, {.f32 = s.get()},
                      nullptr));
  CUDA_OK(AddScaled(added.get(), d_gate.get(), d_logit.get(), rows, n, nullptr));
  std::vector<float> got = y.Get(), gated = s.Get(), sum = added.Get();
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < n; ++i) {
      size_t at = size_t(r) * n + i;
      double reference = Silu(gate[at]) * up[at];
      ExpectNear(got[at], reference, 1e-6 * (1e-3 + std::abs(reference)), "swiglu");
      reference = up[at] * Sigmoid(wide[size_t(r) * 2 * n + 128 * (i / 64) + 64 + i % 64]);
      ExpectNear(gated[at], reference, 1e-6 * (1e-3 + std::abs(reference)), "sigmoid gate");
      reference = up[at] + gate[at] * Sigmoid(logit[r]);
      ExpectNear(sum[at], reference, 1e-6 * (1 + std::abs(up[at]) + std::abs(gate[at])),
                 "scaled sum");
    }
  }
}

GPU_TEST(RopeMatchesDoublesNearOneMillion) {
  Random random(12);
  int rows = 4, heads = 3, pairs = 32, stride = 256;
  std::vector<int32_t> positions = {0, 1, 131071, 1048575};
  std::vector<double> frequencies(pairs);
  for (int i = 0; i < pairs; ++i) frequencies[i] = std::pow(8e6, -2.0 * i / 64);
  Device<int32_t> d_positions(positions);
  Device<double> d_frequencies(frequencies);
  Device<float> table(size_t(rows) * pairs * 2);
  CUDA_OK(
      RopeTable(d_positions.get(), d_frequencies.get(), 1.25f, rows, pairs, table.get(), nullptr));
  for (RopeKind kind : {RopeKind::kNorm, RopeKind::kNeox}) {
    std::vector<float> x = random.Normals(size_t(rows) * heads * stride);
    Device<float> d_x(x);
    CUDA_OK(Rope(d_x.get() + 16, rows, heads, heads * stride, stride, kind, table.get(), pairs,
                 nullptr));
    std::vector<float> got = d_x.Get(), reference = x;
    for (int r = 0; r < rows; ++r) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < pairs; ++i) {
          size_t at = size_t(r * heads + h) * stride + 16;
          size_t first = at + (kind == RopeKind::kNorm ? 2 * i : i);
          size_t second = at + (kind == RopeKind::kNorm ? 2 * i + 1 : i + pairs);
          double angle = positions[r] * frequencies[i], a = x[first], b = x[second];
          ExpectNear(got[first], 1.25 * (a * std::cos(angle) - b * std::sin(angle)), 2e-6, "rope");
          ExpectNear(got[second], 1.25 * (a * std::sin(angle) + b * std::cos(angle)), 2e-6, "rope");
          reference[first] = got[first], reference[second] = got[second];
        }
      }
    }
    Expect(SameBits(got, reference), "values outside the rotated slice changed");
  }
}

struct RouterReference {
  std::vector<int> ids;
  std::vector<double> weights;
  double gap;  // between the last picked and the first rejected
};

RouterReference Route(const RouterArgs& a, const float* logits, const float* bias) {
  int n = a.num_experts;
  std::vector<double> p(n), s(n);
  double highest = *std::max_element(logits, logits + n), sum = 0;
  for (int e = 0; e < n; ++e) sum += std::exp(logits[e] - highest);
  for (int e = 0; e < n; ++e) {
    p[e] = a.sigmoid ? Sigmoid(logits[e]) : std::exp(logits[e] - highest) / sum;
    s[e] = p[e] + (bias != nullptr ? bias[e] : 0);
  }
  double gap = 1e9;
  if (a.groups > 1) {
    int size = n / a.groups;
    std::vector<std::pair<double, int>> order;
    for (int g = 0; g < a.groups; ++g) {
      std::vector<double> members(s.begin() + g * size, s.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      order.push_back({-(members[0] + members[1]), g});
    }
    std::sort(order.begin(), order.end());
    gap = order[a.groups_used].first - order[a.groups_used - 1].first;
    for (int g = a.groups_used; g < a.groups; ++g) {
      for (int i = 0; i < size; ++i) s[order[g].second * size + i] = -1e30;
    }
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return s[x] > s[y]; });
  for (int k = 0; k < a.top_k && k + 1 < n; ++k) gap = std::min(gap, s[order[k]] - s[order[k + 1]]);
  RouterReference out{{order.begin(), order.begin() + a.top_k}, {}, gap};
  double total = 0;
  for (int e : out.ids) total += p[e];
  for (int e : out.ids)
    out.weights.push_back(a.scale *
                          (a.normalize ? p[e] / std::max(total, std::ldexp(1.0, -14)) : p[e]));
  return out;
}

GPU_TEST(RouterPicksAndWeighsAsDefined) {
  Random random(13);
  struct Mode {
    int experts, top_k, groups, used;
    bool sigmoid, bias, normalize;
    float scale;
  };
  const Mode modes[] = {
      {256, 8, 1, 1, true, true, true, 2.5f},  {256, 8, 0, 0, false, false, true, 1},
      {256, 8, 8, 4, true, true, true, 2.5f},  {16, 4, 4, 2, true, true, true, 2.5f},
      {160, 6, 0, 0, false, false, false, 16}, {10, 4, 0, 0, false, false, true, 1},
      {8, 2, 0, 0, true, true, true, 1},       {512, 10, 0, 0, false, false, true, 1},
      {5, 5, 0, 0, true, false, false, 1}};
  for (const Mode& mode : modes) {
    int tokens = 65;
    std::vector<float> logits = random.Normals(size_t(tokens) * mode.experts, 2),
                       bias = random.Normals(mode.experts, 0.1f);
    Device<float> d_logits(logits), d_bias(bias), weights(size_t(tokens) * mode.top_k);
    Device<int32_t> ids(size_t(tokens) * mode.top_k);
    RouterArgs args{.logits = d_logits.get(),
                    .bias = mode.bias ? d_bias.get() : nullptr,
                    .tokens = tokens,
                    .num_experts = mode.experts,
                    .top_k = mode.top_k,
                    .sigmoid = mode.sigmoid,
                    .groups = mode.groups,
                    .groups_used = mode.used,
                    .normalize = mode.normalize,
                    .scale = mode.scale,
                    .ids = ids.get(),
                    .weights = weights.get()};
    CUDA_OK(Router(args, nullptr));
    std::vector<int32_t> got = ids.Get();
    std::vector<float> got_weights = weights.Get();
    for (int t = 0; t < tokens; ++t) {
      RouterReference reference =
          Route(args, logits.data() + size_t(t) * mode.experts, mode.bias ? bias.data() : nullptr);
      if (reference.gap < 1e-6) continue;
      for (int k = 0; k < mode.top_k; ++k) {
        Expect(got[t * mode.top_k + k] == reference.ids[k], "pick");
        ExpectNear(got_weights[t * mode.top_k + k], reference.weights[k], 2e-6 * mode.scale,
                   "weight");
      }
    }
  }
}

GPU_TEST(RouterTiesGoToTheLowerExpert) {
  int experts = 100, top_k = 5;
  std::vector<float> logits(2 * experts, 0.5f);
  for (int e = 0; e < experts; ++e) logits[experts + e] = std::nanf("");
  logits[70] = logits[40] = 1;
  Device<float> d_logits(logits), weights(2 * top_k);
  Device<int32_t> ids(2 * top_k);
  CUDA_OK(Router({.logits = d_logits.get(),
                  .tokens = 2,
                  .num_experts = experts,
                  .top_k = top_k,
                  .sigmoid = true,
                  .ids = ids.get(),
                  .weights = weights.get()},
                 nullptr));
  Expect(ids.Get() == std::vector<int32_t>({40, 70, 0, 1, 2, 0, 1, 2, 3, 4}),
         "order of ties, and of NaN");
}

GPU_TEST(PairsAreSortedStablyAndCombinedInRankOrder) {
  Random random(14);
  for (int tokens : {1, 37, 1000}) {
    int top_k = 4, experts = 30, pairs = tokens * top_k, n = 160;
    std::vector<int32_t> ids(pairs), slot(experts);
    for (int e = 0; e < experts; ++e) slot[e] = e % 3 == 0 ? -1 : e / 3 * 2 + e % 3 - 1;
    for (int32_t& id : ids) id = random.Below(experts + 1) - 1;
    int resident = 20;
    Device<int32_t> d_ids(ids), d_slot(slot), offsets(resident + 1), token_of_row(pairs),
        row_of_pair(pairs);
    CUDA_OK(SortPairs(d_ids.get(), d_slot.get(), tokens, top_k, resident, offsets.get(),
                      token_of_row.get(), row_of_pair.get(), nullptr));
    std::vector<int32_t> o = offsets.Get(), token = token_of_row.Get(), row = row_of_pair.Get();
    int next = 0;
    for (int e = 0; e < resident; ++e) {
      Expect(o[e] == next, "offset");
      for (int p = 0; p < pairs; ++p) {
        int place = ids[p] >= 0 ? slot[ids[p]] : -1;
        if (place < 0) Expect(row[p] == -1, "a pair owned elsewhere has no row");
        if (place != e) continue;
        Expect(row[p] == next && token[next] == p / top_k, "place of a pair");
        ++next;
      }
    }
    Expect(o[resident] == next, "total");

    std::vector<float> x = random.Normals(size_t(pairs) * n), weights = random.Normals(pairs),
                       y = random.Normals(size_t(tokens) * n);
    Device<float> d_x(x), d_weights(weights), d_y(y), direct(size_t(tokens) * n);
    CUDA_OK(CombineExperts(d_x.get(), d_ids.get(), d_slot.get(), row_of_pair.get(), d_weights.get(),
                           tokens, top_k, n, true, d_y.get(), nullptr));
    CUDA_OK(CombineExperts(d_x.get(), d_ids.get(), nullptr, nullptr, d_weights.get(), tokens, top_k,
                           n, false, direct.get(), nullptr));
    std::vector<float> got = d_y.Get(), got_direct = direct.Get();
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < n; ++i) {
        float sum = 0, all = 0;
        for (int k = 0; k < top_k; ++k) {
          int p = t * top_k + k;
          if (ids[p] >= 0) all = std::fma(weights[p], x[size_t(p) * n + i], all);
          if (row[p] >= 0) sum = std::fma(weights[p], x[size_t(row[p]) * n + i], sum);
        }
        Expect(got[size_t(t) * n + i] == y[size_t(t) * n + i] + sum, "sum in rank order");
        Expect(got_direct[size_t(t) * n + i] == all, "sum of pairs in place");
      }
    }
  }
}

void ExpectGemm(const std::vector<uint16_t>& a, size_t a_at, const std::vector<uint16_t>& b,
                size_t b_at, int k, float c, double rounding = 0) {
  double sum = 0, magnitude = 0;
  for (int i = 0; i < k; ++i) {
    double product = double{BFloat16ToFloat(a[a_at + i])} * BFloat16ToFloat(b[b_at + i]);
    sum += product;
    magnitude += std::abs(product);
  }
  // Products are exact; the tensor core cuts rather than rounds, once per 16 of k.
  ExpectNear(c, sum, (k / 16 + 4) * 2.4e-7 * magnitude + rounding * std::abs(sum) + 1e-30, "gemm");
}

GPU_TEST(GemmMatchesDoubleSumsForOddShapes) {
  Random random(15);
  struct Size {
    int m, n, k;
  };
  for (Size s : {Size{1, 1, 32}, Size{9, 576, 192}, Size{130, 33, 512}, Size{257, 300, 2048}}) {
    std::vector<uint16_t> a = ToBf16(random.Normals(size_t(s.m) * (s.k + 8))),
                          b = ToBf16(random.Normals(size_t(s.n) * s.k));
    Device<uint16_t> d_a(a), d_b(b);
    std::vector<float> got;
    for (auto gemm : {&Gemm, &GemmBlasLt}) {
      Device<float> c(size_t(s.m) * (s.n + 4));
      CUDA_OK(gemm({.a = d_a.get(),
                    .lda = s.k + 8,
                    .b = d_b.get(),
                    .c = c.get(),
                    .ldc = s.n + 4,
                    .m = s.m,
                    .n = s.n,
                    .k = s.k},
                   nullptr));
      got = c.Get();
      for (int i = 0; i < s.m; ++i) {
        for (int j = 0; j < s.n; ++j)
          ExpectGemm(a, size_t(i) * (s.k + 8), b, size_t(j) * s.k, s.k,
                     got[size_t(i) * (s.n + 4) + j]);
        for (int j = s.n; j < s.n + 4; ++j)
          Expect(std::isnan(got[size_t(i) * (s.n + 4) + j]), "written past the row");
      }
    }
    std::vector<float> fa = random.Normals(size_t(s.m) * s.k),
                       fb = random.Normals(size_t(s.n) * s.k);
    Device<float> d_fa(fa), d_fb(fb), fc(size_t(s.m) * s.n);
    CUDA_OK(GemmF32(d_fa.get(), d_fb.get(), fc.get(), s.m, s.n, s.k, s.n, nullptr));
    got = fc.Get();
    for (int i = 0; i < s.m; ++i) {
      for (int j = 0; j < s.n; ++j) {
        double sum = 0, magnitude = 0;
        for (int l = 0; l < s.k; ++l) {
          double product = double{fa[size_t(i) * s.k + l]} * fb[size_t(j) * s.k + l];
          sum += product, magnitude += std::abs(product);
        }
        ExpectNear(got[size_t(i) * s.n + j], sum, 6e-8 * (4 + std::sqrt(s.k)) * magnitude,
                   "f32 gemm");
      }
    }
  }
}

GPU_TEST(GemmOfGroupsWritesF32OrBf16) {
  Random random(17);
  struct Size {
    int groups, m, n, k;
  };
  for (Size s : {Size{3, 5, 32, 32}, Size{8, 70, 256, 512}, Size{64, 130, 512, 192}}) {
    // Heads: rows of all groups side by side, as attention has them.
    std::vector<uint16_t> a = ToBf16(random.Normals(size_t(s.m) * s.groups * s.k)),
                          b = ToBf16(random.Normals(size_t(s.n) * s.groups * s.k));
    Device<uint16_t> d_a(a), d_b(b);
    for (auto gemm : {&Gemm, &GemmBlasLt}) {
      const size_t count = size_t(s.m) * s.groups * s.n;
      Device<float> c(count);
      Device<uint16_t> c_bf16(count);
      GemmArgs args{.a = d_a.get(),
                    .lda = s.groups * s.k,
                    .a_group_stride = size_t(s.k),
                    .b = d_b.get(),
                    .b_group_stride = size_t(s.n) * s.k,
                    .c = c.get(),
                    .ldc = s.groups * s.n,
                    .c_group_stride = size_t(s.n),
                    .groups = s.groups,
                    .m = s.m,
                    .n = s.n,
                    .k = s.k};
      CUDA_OK(gemm(args, nullptr));
      args.c = nullptr, args.c_bf16 = c_bf16.get();
      CUDA_OK(gemm(args, nullptr));
      std::vector<float> got = c.Get();
      std::vector<uint16_t> got_bf16 = c_bf16.Get();
      for (int i = 0; i < s.m; i += 7) {
        for (int g = 0; g < s.groups; ++g) {
          for (int j = 0; j < s.n; j += 5) {
            size_t at = (size_t(i) * s.groups + g) * s.n + j;
            size_t a_at = (size_t(i) * s.groups + g) * s.k, b_at = (size_t(g) * s.n + j) * s.k;
            ExpectGemm(a, a_at, b, b_at, s.k, got[at]);
            // bf16 has eight bits.
            ExpectGemm(a, a_at, b, b_at, s.k, BFloat16ToFloat(got_bf16[at]), 1.0 / 256);
          }
        }
      }
    }
  }
}

GPU_TEST(GroupedGemmFollowsOffsetsAndRowIndex) {
  Random random(16);
  int groups = 5, n = 160, k = 96, tokens = 70;
  std::vector<int32_t> offsets = {0, 3, 3, 140, 141, 270};
  int rows = offsets.back();
  std::vector<int32_t> index(rows);
  for (int32_t& i : index) i = random.Below(tokens);
  std::vector<uint16_t> a = ToBf16(random.Normals(size_t(tokens) * k)),
                        b = ToBf16(random.Normals(size_t(groups) * n * k));
  Device<uint16_t> d_a(a), d_b(b);
  Device<int32_t> d_offsets(offsets), d_index(index);
  Device<float> c(size_t(rows) * n);
  CUDA_OK(Gemm({.a = d_a.get(),
                .lda = k,
                .row_index = d_index.get(),
                .b = d_b.get(),
                .b_group_stride = size_t(n) * k,
                .c = c.get(),
                .ldc = n,
                .groups = groups,
                .offsets = d_offsets.get(),
                .m = rows,
                .n = n,
                .k = k},
               nullptr));
  std::vector<float> got = c.Get();
  for (int g = 0; g < groups; ++g) {
    for (int r = offsets[g]; r < offsets[g + 1]; ++r) {
      for (int j = 0; j < n; ++j)
        ExpectGemm(a, size_t(index[r]) * k, b, (size_t(g) * n + j) * k, k, got[size_t(r) * n + j]);
    }
  }
  // Heads: the same rows for each group, side by side.
  int heads = 3, m = 33, dim = 64, out = 48;
  a = ToBf16(random.Normals(size_t(m) * heads * dim)),
  b = ToBf16(random.Normals(size_t(heads) * out * dim));
  Device<uint16_t> h_a(a), h_b(b);
  Device<float> h_c(size_t(m) * heads * out);
  CUDA_OK(Gemm({.a = h_a.get(),
                .lda = heads * dim,
                .a_group_stride = size_t(dim),
                .b = h_b.get(),
                .b_group_stride = size_t(out) * dim,
                .c = h_c.get(),
                .ldc = heads * out,
                .c_group_stride = size_t(out),
                .groups = heads,
                .m = m,
                .n = out,
                .k = dim},
               nullptr));
  got = h_c.Get();
  for (int h = 0; h < heads; ++h) {
    for (int r = 0; r < m; ++r) {
      for (int j = 0; j < out; ++j) {
        ExpectGemm(a, size_t(r) * heads * dim + h * dim, b, (size_t(h) * out + j) * dim, dim,
                   got[size_t(r) * heads * out + h * out + j]);
      }
    }
  }
}

GPU_TEST(TopKIsExactWithTiesToTheLowerIndex) {
  Random random(17);
  for (int n : {1, 100, 2049, 5000, 154880}) {
    for (int k : {1, 16, 2048}) {
      int rows = 3;
      std::vector<float> x = random.Normals(size_t(rows) * n);
      for (size_t i = 0; i < x.size(); ++i) {
        if (i / n == 1) x[i] = std::round(x[i] * 2) / 2;  // many ties, both zeros
        if (i / n == 2 && i % 5 == 0) x[i] = i % 2 ? -INFINITY : std::nanf("");
      }
      std::vector<int32_t> limits = {n - 1, n - 1, std::max(0, n / 2)};
      Device<float> d_x(x);
      Device<int32_t> d_limits(limits), out(size_t(rows) * k);
      CUDA_OK(TopK(d_x.get(), rows, n, d_limits.get(), k, out.get(), nullptr));
      std::vector<int32_t> got = out.Get();
      for (int r = 0; r < rows; ++r) {
        std::vector<int> order(std::min(n, limits[r] + 1));
        std::iota(order.begin(), order.end(), 0);
        auto value = [&](int i) {
          float v = x[size_t(r) * n + i];
          return std::isnan(v) ? -INFINITY : v;
        };
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return value(a) > value(b); });
        order.resize(std::min<size_t>(order.size(), k));
        std::sort(order.begin(), order.end());
        order.resize(k, -1);
        Expect(
            std::equal(order.begin(), order.end(), got.begin() + size_t(r) * k),
            "top " + std::to_string(k) + " of " + std::to_string(n) + " row " + std::to_string(r));
      }
    }
  }
}

}  // namespace
}  // namespace packtrain::cuda
