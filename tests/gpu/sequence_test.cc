// Kernels that read or write the state of sequences: KV cache, attention, indexer, Gated DeltaNet.

#include <memory>

#include "common/quant/codec.h"
#include "tests/gpu/harness.h"
#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {
namespace {

using namespace gputest;

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kQ8_0, KvType::kQ4_1};
const char* const kTypeNames[] = {"f32", "f16", "q8_0", "q4_1"};

TensorType CodecType(KvType type) {
  const TensorType types[] = {TensorType::kF32, TensorType::kF16, TensorType::kQ8_0,
                              TensorType::kQ4_1};
  return types[static_cast<int>(type)];
}

// Two sequences with pages dealt out of order from one pool.
struct Cache {
  Cache(Random* random, KvType kv_type, int row_values, int context)
      : type(kv_type), n(row_values), tables(2), contents(2) {
    int pages = context / 64 + 1;
    std::vector<int32_t> ids(2 * pages);
    for (int i = 0; i < 2 * pages; ++i) ids[i] = i;
    for (int i = 2 * pages - 1; i > 0; --i) std::swap(ids[i], ids[random->Below(i + 1)]);
    for (int s = 0; s < 2; ++s)
      tables[s].assign(ids.begin() + s * pages, ids.begin() + (s + 1) * pages);
    data.reset(new Device<uint8_t>(size_t(2) * pages * 64 * KvRowBytes(type, n)));
    std::vector<int32_t> both = tables[0];
    both.insert(both.end(), tables[1].begin(), tables[1].end());
    d_tables.reset(new Device<int32_t>(both));
    // Fill every position through the kernel under test; its contents are read back for the
    // reference.
    int rows = 2 * context;
    std::vector<float> x = random->Normals(size_t(rows) * n);
    std::vector<int32_t> position(rows), offset(rows);
    for (int r = 0; r < rows; ++r) position[r] = r % context, offset[r] = r / context * pages;
    Device<float> d_x(x);
    Device<int32_t> d_position(position), d_offset(offset);
    CUDA_OK(KvStore({d_tables->get(), d_offset.get(), d_position.get(), rows}, d_x.get(), n, n,
                    type, data->get(), nullptr));
    std::vector<uint8_t> bytes = data->Get();
    size_t row_bytes = KvRowBytes(type, n);
    std::vector<uint8_t> expected(row_bytes);
    for (int r = 0; r < rows; ++r) {
      const uint8_t* stored =
          bytes.data() +
          (size_t(tables[r / context][position[r] / 64]) * 64 + position[r] % 64) * row_bytes;
      Encode(CodecType(type), x.data() + size_t(r) * n, n, expected.data());
      Expect(std::memcmp(stored, expected.data(), row_bytes) == 0,
             std::string("stored row, ") + kTypeNames[int(type)]);
      std::vector<float> values(n);
      Decode(CodecType(type), stored, n, values.data());
      contents[r / context].insert(contents[r / context].end(), values.begin(), values.end());
    }
  }
  int pages() const { return static_cast<int>(tables[0].size()); }
  KvType type;
  int n;
  std::vector<std::vector<int32_t>> tables;
  std::vector<std::vector<float>> contents;  // [sequence][position * n]
  std::unique_ptr<Device<uint8_t>> data;
  std::unique_ptr<Device<int32_t>> d_tables;
};

// Rows (sequence, position) of a ubatch on the device.
struct Rows {
  Rows(const Cache& cache, const std::vector<std::pair<int, int>>& rows) : list(rows) {
    std::vector<int32_t> offset, position;
    for (auto [s, p] : rows) offset.push_back(s * cache.pages()), position.push_back(p);
    offsets.reset(new Device<int32_t>(offset));
    positions.reset(new Device<int32_t>(position));
    at = {cache.d_tables->get(), offsets->get(), positions->get(), static_cast<int>(rows.size())};
  }
  std::vector<std::pair<int, int>> list;
  std::unique_ptr<Device<int32_t>> offsets, positions;
  KvRows at;
};

GPU_TEST(KvPagesAreCopiedWhole) {
  Random random(20);
  size_t page = 64 * KvRowBytes(KvType::kQ8_0, 576);
  std::vector<uint8_t> bytes = random.Bytes(6 * page);
  Device<uint8_t> cache(bytes);
  Device<int32_t> from(std::vector<int32_t>{1, 4}), to(std::vector<int32_t>{5, 0});
  CUDA_OK(KvCopyPages(from.get(), to.get(), 2, page, cache.get(), nullptr));
  std::copy_n(bytes.begin() + page, page, bytes.begin() + 5 * page);
  std::copy_n(bytes.begin() + 4 * page, page, bytes.begin());
  Expect(SameBits(cache.Get(), bytes), "pages");
}

struct AttentionCase {
  int heads, kv_heads, k_dim, v_dim;
  bool shared;
};

void RunAttention(const AttentionCase& c, KvType type, int splits, bool sparse, bool consecutive) {
  Random random(21 + c.heads + splits);
  int context = 330;
  Cache keys(&random, type, c.kv_heads * c.k_dim, context);
  std::unique_ptr<Cache> values;
  if (!c.shared) {
    values.reset(new Cache(&random, type, c.kv_heads * c.v_dim, context));
    values->tables = keys.tables;
    // Same page tables for both: refill the reference from the stored bytes.
    std::vector<uint8_t> bytes = values->data->Get();
    size_t row_bytes = KvRowBytes(type, values->n);
    // Pages never written hold the poison, which decodes to NaN: both caches have written the same
    // positions only if the tables agree, so write them again under the shared table.
    for (int s = 0; s < 2; ++s) {
      std::vector<float> x = random.Normals(size_t(context) * values->n);
      std::vector<int32_t> position(context), offset(context, s * keys.pages());
      for (int p = 0; p < context; ++p) position[p] = p;
      Device<float> d_x(x);
      Device<int32_t> d_position(position), d_offset(offset);
      CUDA_OK(KvStore({keys.d_tables->get(), d_offset.get(), d_position.get(), context}, d_x.get(),
                      values->n, values->n, type, values->data->get(), nullptr));
      bytes = values->data->Get();
      for (int p = 0; p < context; ++p) {
        const uint8_t* stored =
            bytes.data() + (size_t(keys.tables[s][p / 64]) * 64 + p % 64) * row_bytes;
        Decode(CodecType(type), stored, values->n,
               values->contents[s].data() + size_t(p) * values->n);
      }
    }
  }
  std::vector<std::pair<int, int>> list;
  if (consecutive) {
    for (int p = 190; p < 213; ++p) list.push_back({1, p});
  } else {
    list = {{0, 0}, {1, 31}, {0, 63}, {1, 64}, {0, 100}, {0, 255}, {1, 256}, {1, 329}};
  }
  int rows = static_cast<int>(list.size());
  Rows at(keys, list);
  int stride = c.heads * (c.k_dim + 32), head_stride = c.k_dim + 32;
  std::vector<float> q = random.Normals(size_t(rows) * stride, 2);
  Device<float> d_q(q), out(size_t(rows) * c.heads * c.v_dim);
  Device<uint8_t> workspace(AttentionWorkspaceBytes(rows, c.heads, c.v_dim, splits));
  int top = 48;
  std::vector<int32_t> selection(size_t(rows) * top, -1);
  for (int r = 0; r < rows; ++r) {
    int visible = list[r].second + 1, want = std::min(visible, top);
    std::vector<int32_t> all(visible);
    for (int i = 0; i < visible; ++i) all[i] = i;
    std::shuffle(all.begin(), all.end(), std::mt19937(r));
    std::sort(all.begin(), all.begin() + want);
    std::copy_n(all.begin(), want, selection.begin() + size_t(r) * top);
  }
  Device<int32_t> d_selection(selection);
  AttentionArgs args;
  args.at = at.at;
  args.q = d_q.get();
  args.q_stride = stride;
  args.q_head_stride = head_stride;
  args.heads = c.heads;
  args.kv_heads = c.kv_heads;
  args.k_dim = c.k_dim;
  args.v_dim = c.v_dim;
  args.scale = 1.0f / std::sqrt(static_cast<float>(c.k_dim));
  args.type = type;
  args.k_cache = keys.data->get();
  args.v_cache = c.shared ? nullptr : values->data->get();
  args.selection = sparse ? d_selection.get() : nullptr;
  args.selection_stride = top;
  args.consecutive = consecutive;
  args.max_splits = splits;
  args.workspace = workspace.get();
  args.out = out.get();
  CUDA_OK(Attention(args, nullptr));
  std::vector<float> got = out.Get();
  if (splits == 1) {
    Device<uint16_t> rounded(got.size());
    args.out = nullptr;
    args.emit.values.bf16 = rounded.get();
    CUDA_OK(Attention(args, nullptr));
    Expect(rounded.Get() == ToBf16(got), "the same result in bf16");
    args.emit = {};
  }

  std::string what = std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads, " +
                     std::to_string(c.k_dim) + "/" + std::to_string(c.v_dim) + ", " +
                     kTypeNames[int(type)] + ", " + std::to_string(splits) + " splits";
  const Cache& v_cache = c.shared ? keys : *values;
  for (int r = 0; r < rows; ++r) {
    int s = list[r].first, visible = list[r].second + 1;
    std::vector<int> entries;
    for (int i = 0; i < (sparse ? std::min(visible, top) : visible); ++i) {
      entries.push_back(sparse ? selection[size_t(r) * top + i] : i);
    }
    for (int h = 0; h < c.heads; ++h) {
      int kv = h / (c.heads / c.kv_heads);
      std::vector<double> z(entries.size());
      double highest = -1e300, sum = 0, error = 0;
      for (size_t e = 0; e < entries.size(); ++e) {
        double dot = 0, magnitude = 0;
        for (int i = 0; i < c.k_dim; ++i) {
          double product = double{q[size_t(r) * stride + size_t(h) * head_stride + i]} *
                           keys.contents[s][size_t(entries[e]) * keys.n + kv * c.k_dim + i];
          dot += product;
          magnitude += std::abs(product);
        }
        z[e] = dot * args.scale;
        highest = std::max(highest, z[e]);
        error = std::max(error, magnitude * args.scale);
      }
      for (double& v : z) sum += v = std::exp(v - highest);
      // f16 rounds q (and dequantised keys) by 2^-12 on average each and p by 2^-11; sums of many
      // such errors grow with the root of their number, far below their sum of magnitudes `error`.
      bool f32 = type == KvType::kF32;
      for (int d = 0; d < c.v_dim; ++d) {
        double o = 0, spread = 0;
        for (size_t e = 0; e < entries.size(); ++e) {
          double v =
              v_cache
                  .contents[s][size_t(entries[e]) * v_cache.n + (c.shared ? 0 : kv * c.v_dim) + d];
          o += z[e] / sum * v;
          spread += z[e] / sum * std::abs(v);
        }
        double tolerance = f32 ? 3e-7 * error * (spread + 1) + 1e-6
                               : (std::ldexp(1.0, -12) * error * 0.5 + 2e-3) * (spread + 0.1);
        ExpectNear(got[(size_t(r) * c.heads + h) * c.v_dim + d], o, tolerance, what);
      }
    }
  }

  // Run to run, and each row alone, the same bits (rows that share a pass are of the other class).
  Device<float> again(got.size());
  args.out = again.get();
  CUDA_OK(Attention(args, nullptr));
  Expect(SameBits(again.Get(), got), what + ": another run differs");
  for (int r = 0; r < rows && !consecutive; ++r) {
    Rows one(keys, {list[r]});
    Device<float> alone(size_t(c.heads) * c.v_dim);
    args.at = one.at;
    args.q = d_q.get() + size_t(r) * stride;
    args.selection = sparse ? d_selection.get() + size_t(r) * top : nullptr;
    args.out = alone.get();
    CUDA_OK(Attention(args, nullptr));
    std::vector<float> bits = alone.Get();
    Expect(std::memcmp(bits.data(), got.data() + size_t(r) * bits.size(), bits.size() * 4) == 0,
           what + ": a row alone differs");
  }
}

GPU_TEST(MlaAttentionMatchesDoubles) {
  for (KvType type : kTypes) {
    for (int splits : {1, 3, 8}) {
      for (int heads : {64, 16})
        RunAttention({heads, 1, 576, 512, true}, type, splits, false, false);
    }
    RunAttention({64, 1, 576, 512, true}, type, 1, false, true);
  }
  RunAttention({128, 1, 576, 512, true}, KvType::kF16, 2, false, false);
}

GPU_TEST(SparseMlaAttentionReadsTheListedPositions) {
  for (KvType type : kTypes) {
    for (int splits : {1, 2}) RunAttention({64, 1, 576, 512, true}, type, splits, true, false);
  }
}

GPU_TEST(GqaAttentionMatchesDoubles) {
  for (KvType type : kTypes) {
    for (int splits : {1, 4}) {
      RunAttention({16, 2, 256, 256, false}, type, splits, false, false);
      RunAttention({32, 4, 128, 128, false}, type, splits, false, false);
      RunAttention({12, 1, 128, 128, false}, type, splits, false, false);
    }
    RunAttention({16, 2, 256, 256, false}, type, 1, false, true);
    RunAttention({12, 1, 128, 128, false}, type, 1, false, true);
  }
}

GPU_TEST(AttentionOfOddDimensionsRunsInF32) {
  for (KvType type : kTypes) {
    RunAttention({3, 1, 96, 64, true}, type, 2, false, false);
    RunAttention({4, 2, 64, 64, false}, type, 2, false, false);
    RunAttention({4, 4, 64, 96, false}, type, 1, false, true);
  }
}

GPU_TEST(IndexerScoresMatchDoubles) {
  for (KvType type : kTypes) {
    for (auto [heads, dim] :
         {std::pair{32, 128}, std::pair{64, 128}, std::pair{4, 64}, std::pair{3, 32}}) {
      Random random(30);
      int context = 300, columns = 290;
      Cache keys(&random, type, dim, context);
      std::vector<std::pair<int, int>> list = {{0, 0}, {1, 63}, {0, 64}, {1, 200}, {0, 289}};
      Rows at(keys, list);
      int rows = static_cast<int>(list.size());
      std::vector<float> q = random.Normals(size_t(rows) * heads * dim),
                         w = random.Normals(size_t(rows) * heads);
      Device<float> d_q(q), d_w(w), scores(size_t(rows) * columns);
      IndexerArgs args{.at = at.at,
                       .q = d_q.get(),
                       .w = d_w.get(),
                       .heads = heads,
                       .dim = dim,
                       .scale = 1 / std::sqrt(static_cast<float>(heads * dim)),
                       .type = type,
                       .cache = keys.data->get(),
                       .columns = columns,
                       .scores = scores.get()};
      CUDA_OK(IndexerScores(args, nullptr));
      std::vector<float> got = scores.Get();
      for (int r = 0; r < rows; ++r) {
        for (int t = 0; t < columns; ++t) {
          float value = got[size_t(r) * columns + t];
          if (t > list[r].second) {
            Expect(std::isinf(value) && value < 0, "a score beyond the position");
            continue;
          }
          double sum = 0, magnitude = 0;
          for (int h = 0; h < heads; ++h) {
            double dot = 0, size = 0;
            for (int i = 0; i < dim; ++i) {
              double product = double{q[(size_t(r) * heads + h) * dim + i]} *
                               keys.contents[list[r].first][size_t(t) * dim + i];
              dot += product, size += std::abs(product);
            }
            sum += w[size_t(r) * heads + h] * std::max(0.0, dot);
            magnitude += std::abs(w[size_t(r) * heads + h]) * size;
          }
          bool f32 = type == KvType::kF32 || dim != 128;
          ExpectNear(value, sum * args.scale, magnitude * args.scale * (f32 ? 2e-6 : 5e-4) + 1e-7,
                     "score");
        }
      }
    }
  }
}

// One sequence's Gated DeltaNet layer in doubles.
struct DeltaNetReference {
  DeltaNetReference(int kh, int vh, int dk, int dv)
      : kh(kh),
        vh(vh),
        dk(dk),
        dv(dv),
        channels(2 * kh * dk + vh * dv),
        conv(3 * channels),
        state(size_t(vh) * dk * dv) {}
  std::vector<double> Step(const float* u, const float* w, const float* beta_logit,
                           const float* alpha, const float* dt, const float* a) {
    std::vector<double> x(channels), out(size_t(vh) * dv);
    for (int c = 0; c < channels; ++c) {
      double y = w[4 * c] * conv[c] + w[4 * c + 1] * conv[channels + c] +
                 w[4 * c + 2] * conv[2 * channels + c] + double{w[4 * c + 3]} * u[c];
      x[c] = y / (1 + std::exp(-y));
    }
    for (int c = 0; c < channels; ++c) {
      conv[c] = conv[channels + c], conv[channels + c] = conv[2 * channels + c],
      conv[2 * channels + c] = u[c];
    }
    for (int h = 0; h < 2 * kh; ++h) {
      double sum = 1e-6;
      for (int i = 0; i < dk; ++i) sum += x[h * dk + i] * x[h * dk + i];
      for (int i = 0; i < dk; ++i)
        x[h * dk + i] /= std::sqrt(sum) * (h < kh ? std::sqrt(double(dk)) : 1);
    }
    for (int v = 0; v < vh; ++v) {
      const double* q = x.data() + (v % kh) * dk;
      const double* k = x.data() + (kh + v % kh) * dk;
      double* s = state.data() + size_t(v) * dk * dv;
      double decay = std::exp(a[v] * std::log1p(std::exp(double{alpha[v]} + dt[v])));
      double beta = 1 / (1 + std::exp(-double{beta_logit[v]}));
      for (int j = 0; j < dv; ++j) {
        double predicted = 0, o = 0;
        for (int i = 0; i < dk; ++i) predicted += (s[i * dv + j] *= decay) * k[i];
        double d = beta * (x[2 * kh * dk + v * dv + j] - predicted);
        for (int i = 0; i < dk; ++i) o += (s[i * dv + j] += k[i] * d) * q[i];
        out[v * dv + j] = o;
      }
    }
    return out;
  }
  int kh, vh, dk, dv, channels;
  std::vector<double> conv, state;
};

struct DeltaNetSize {
  int kh, vh, dk, dv;
};
constexpr DeltaNetSize kDeltaNetSizes[] = {{16, 32, 128, 128}, {2, 4, 64, 64}, {1, 3, 32, 48}};

// What all launches of one layer have in common.
DeltaNetArgs DeltaNetLayer(const DeltaNetSize& z, const Device<float>& conv_weight,
                           const Device<float>& dt_bias, const Device<float>& a,
                           const Device<float>& conv_state, const Device<float>& state) {
  return {.k_heads = z.kh,
          .v_heads = z.vh,
          .k_dim = z.dk,
          .v_dim = z.dv,
          .conv_weight = conv_weight.get(),
          .conv_state = conv_state.get(),
          .dt_bias = dt_bias.get(),
          .a = a.get(),
          .state = state.get()};
}

GPU_TEST(DeltaNetMatchesDoublesAndAnyCutOfFewTokens) {
  for (const DeltaNetSize& z : kDeltaNetSizes) {
    Random random(40);
    int tokens = 60, channels = 2 * z.kh * z.dk + z.vh * z.dv;
    std::vector<float> u = random.Normals(size_t(2) * tokens * channels),
                       w = random.Normals(size_t(channels) * 4, 0.5f);
    std::vector<float> beta = random.Normals(size_t(2) * tokens * z.vh),
                       alpha = random.Normals(size_t(2) * tokens * z.vh);
    std::vector<float> dt = random.Normals(z.vh), a = random.Normals(z.vh);
    for (float& v : a) v = -std::abs(v);
    Device<float> d_u(u), d_w(w), d_beta(beta), d_alpha(alpha), d_dt(dt), d_a(a);
    size_t out_row = size_t(z.vh) * z.dv, state_size = size_t(z.vh) * z.dk * z.dv;

    // Sequences 0 and 1 own slots 2 and 0; `cuts` are the rows at which a new ubatch begins.
    auto run = [&](std::vector<int> cuts, std::vector<float>* states) {
      Device<float> conv(std::vector<float>(size_t(3) * 3 * channels, 0.0f)),
          state(std::vector<float>(3 * state_size, 0.0f));
      Device<float> qkv(u.size()), out(2 * tokens * out_row);
      std::vector<float> result(2 * tokens * out_row);
      cuts.push_back(tokens);
      for (size_t c = 0, begin = 0; c < cuts.size(); begin = cuts[c++]) {
        Device<int32_t> offset(std::vector<int32_t>{int(begin), cuts[c]}),
            slots(std::vector<int32_t>{2, 0});
        for (int s = 0; s < 2; ++s) {
          DeltaNetArgs args = DeltaNetLayer(z, d_w, d_dt, d_a, conv, state);
          args.sequences = 1;
          args.rows = cuts[c];
          args.row_offset = offset.get();
          args.slot = slots.get() + s;
          args.u = d_u.get() + size_t(s) * tokens * channels;
          args.beta_logit = d_beta.get() + size_t(s) * tokens * z.vh;
          args.alpha = d_alpha.get() + size_t(s) * tokens * z.vh;
          args.qkv = qkv.get() + size_t(s) * tokens * channels;
          args.out = out.get() + s * tokens * out_row;
          CUDA_OK(DeltaNet(args, nullptr));
        }
      }
      *states = state.Get();
      return out.Get();
    };
    std::vector<float> whole_state, cut_state;
    std::vector<float> whole = run({}, &whole_state), cut = run({1, 2, 40}, &cut_state);
    Expect(SameBits(whole, cut), "another cut of the tokens differs");
    Expect(SameBits(whole_state, cut_state), "another cut of the tokens leaves another state");
    // Both sequences in one launch.
    Device<float> conv(std::vector<float>(size_t(3) * 3 * channels, 0.0f)),
        state(std::vector<float>(3 * state_size, 0.0f));
    Device<float> qkv(u.size()), out(2 * tokens * out_row);
    Device<int32_t> offset(std::vector<int32_t>{0, tokens, 2 * tokens}),
        slots(std::vector<int32_t>{2, 0});
    DeltaNetArgs args = DeltaNetLayer(z, d_w, d_dt, d_a, conv, state);
    args.sequences = 2;
    args.rows = 2 * tokens;
    args.row_offset = offset.get();
    args.slot = slots.get();
    args.u = d_u.get();
    args.beta_logit = d_beta.get();
    args.alpha = d_alpha.get();
    args.qkv = qkv.get();
    args.out = out.get();
    CUDA_OK(DeltaNet(args, nullptr));
    Expect(SameBits(out.Get(), whole), "two sequences in one launch differ from each alone");

    for (int s = 0; s < 2; ++s) {
      DeltaNetReference reference(z.kh, z.vh, z.dk, z.dv);
      for (int t = 0; t < tokens; ++t) {
        size_t row = size_t(s) * tokens + t;
        std::vector<double> o =
            reference.Step(u.data() + row * channels, w.data(), beta.data() + row * z.vh,
                           alpha.data() + row * z.vh, dt.data(), a.data());
        for (size_t i = 0; i < o.size(); ++i)
          ExpectNear(whole[row * out_row + i], o[i], 2e-6 + 2e-5 * std::abs(o[i]), "output");
      }
      for (size_t i = 0; i < state_size; ++i) {
        ExpectNear(whole_state[(s == 0 ? 2 : 0) * state_size + i], reference.state[i], 1e-5,
                   "state");
      }
    }
  }
}

GPU_TEST(DeltaNetChunksMatchDoubles) {
  for (const DeltaNetSize& z : kDeltaNetSizes) {
    Random random(43);
    const int channels = 2 * z.kh * z.dk + z.vh * z.dv, out_row = z.vh * z.dv;
    const size_t state_size = size_t(z.vh) * z.dk * z.dv;
    // Three sequences in slots 2, 0, 1, the middle one short, go on from an earlier ubatch.
    struct Part {
      std::vector<int> rows, positions;
    };
    const std::vector<Part> ubatches = {{{3, 1, 70}, {0, 0, 0}}, {{211, 9, 65}, {3, 1, 70}}};
    std::vector<int32_t> slots = {2, 0, 1};
    std::vector<float> w = random.Normals(size_t(channels) * 4, 0.5f), dt = random.Normals(z.vh),
                       a = random.Normals(z.vh);
    // From heads that forget at once to such that hardly do.
    for (int v = 0; v < z.vh; ++v) a[v] = -std::abs(a[v]) * std::pow(10.0f, -float(v % 4));
    Device<float> d_w(w), d_dt(dt), d_a(a),
        conv(std::vector<float>(size_t(3) * 3 * channels, 0.0f)),
        state(std::vector<float>(3 * state_size, 0.0f));
    std::vector<DeltaNetReference> references(3, DeltaNetReference(z.kh, z.vh, z.dk, z.dv));
    for (const Part& part : ubatches) {
      std::vector<int32_t> offsets = {0}, positions;
      for (int s = 0; s < 3; ++s) {
        for (int i = 0; i < part.rows[s]; ++i) positions.push_back(part.positions[s] + i);
        offsets.push_back(static_cast<int32_t>(positions.size()));
      }
      const int rows = offsets[3];
      const std::vector<float> u = random.Normals(size_t(rows) * channels),
                               beta = random.Normals(size_t(rows) * z.vh),
                               alpha = random.Normals(size_t(rows) * z.vh);
      std::vector<float> room(size_t(rows) * std::max(channels, z.vh * (z.dk + 64)));
      std::copy(u.begin(), u.end(), room.begin());
      Device<float> d_u(room), d_beta(beta), d_alpha(alpha), qkv(u.size()),
          out(size_t(rows) * out_row);
      Device<int32_t> d_offsets(offsets), d_slots(slots), d_positions(positions);
      DeltaNetArgs args = DeltaNetLayer(z, d_w, d_dt, d_a, conv, state);
      args.sequences = 3;
      args.rows = rows;
      args.row_offset = d_offsets.get();
      args.slot = d_slots.get();
      args.longest = *std::max_element(part.rows.begin(), part.rows.end());
      args.position = d_positions.get();
      args.u = d_u.get();
      args.beta_logit = d_beta.get();
      args.alpha = d_alpha.get();
      args.qkv = qkv.get();
      args.out = out.get();
      CUDA_OK(DeltaNet(args, nullptr));
      const std::vector<float> got = out.Get(), states = state.Get();
      for (int s = 0; s < 3; ++s) {
        for (size_t row = offsets[s]; row < size_t(offsets[s + 1]); ++row) {
          const std::vector<double> o =
              references[s].Step(u.data() + row * channels, w.data(), beta.data() + row * z.vh,
                                 alpha.data() + row * z.vh, dt.data(), a.data());
          for (size_t i = 0; i < o.size(); ++i)
            ExpectNear(got[row * out_row + i], o[i], 2e-6 + 2e-5 * std::abs(o[i]), "output");
        }
        for (size_t i = 0; i < state_size; ++i) {
          ExpectNear(states[slots[s] * state_size + i], references[s].state[i], 1e-5, "state");
        }
      }
    }
  }
}

GPU_TEST(GatedNormMatchesDoubles) {
  Random random(41);
  int rows = 3, heads = 5, dim = 128;
  std::vector<float> x = random.Normals(size_t(rows) * heads * dim), z = random.Normals(x.size()),
                     w = random.Normals(dim);
  Device<float> d_x(x), d_z(z), d_w(w), y(x.size());
  CUDA_OK(GatedRmsNorm(d_x.get(), d_z.get(), d_w.get(), 1e-6f, rows, heads, dim, {.f32 = y.get()},
                       nullptr));
  std::vector<float> got = y.Get();
  for (int h = 0; h < rows * heads; ++h) {
    double sum = 0;
    for (int i = 0; i < dim; ++i) sum += double{x[h * dim + i]} * x[h * dim + i];
    for (int i = 0; i < dim; ++i) {
      double gate = z[h * dim + i];
      double reference =
          x[h * dim + i] / std::sqrt(sum / dim + 1e-6) * w[i] * gate / (1 + std::exp(-gate));
      ExpectNear(got[h * dim + i], reference, 2e-6 * (0.1 + std::abs(reference)), "gated norm");
    }
  }
}

}  // namespace
}  // namespace packtrain::cuda
