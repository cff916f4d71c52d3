// Decoding and products of every weight type, against the reference codec and double sums.

#include <memory>

#include "common/quant/codec.h"
#include "common/quant/type.h"
#include "tests/gpu/harness.h"
#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {
namespace {

using namespace gputest;

std::vector<TensorType> WeightTypes() {
  std::vector<TensorType> types;
  for (const TypeTraits& t : AllTypes()) {
    if (CanDecode(t.type) && FindWeightKernels(t.type) != nullptr) types.push_back(t.type);
  }
  return types;
}

std::string Name(TensorType type) { return std::string(TypeName(type)); }

std::vector<float> DecodeAll(TensorType type, const std::vector<uint8_t>& blocks) {
  const TypeTraits& t = Traits(type);
  std::vector<float> values(blocks.size() / t.block_bytes * t.block_weights);
  Decode(type, blocks.data(), values.size(), values.data());
  return values;
}

// Value i of a Q8 row without its scale.
int Q8Value(const uint8_t* row, int n, int i) {
  return static_cast<int8_t>(row[i % 32 / 16 * (n / 2) + i / 32 * 16 + i % 16]);
}

// The activations that a kernel of this type reads, on the device and as numbers.
struct Activations {
  Activations(Random* random, bool f32, int rows, int n)
      : values(random->Normals(size_t(rows) * n)) {
    for (size_t i = 0; i < values.size(); i += 97) values[i] *= 20;
    raw.reset(new Device<float>(values));
    if (f32) return;
    q8.reset(new Device<uint8_t>(rows * Q8RowBytes(n)));
    CUDA_OK(Convert(raw->get(), rows, n, n, {.q8 = q8->get()}, nullptr));
    std::vector<uint8_t> bytes = q8->Get();
    for (int r = 0; r < rows; ++r) {
      const uint8_t* row = bytes.data() + r * Q8RowBytes(n);
      for (int i = 0; i < n; ++i) {
        float d;
        std::memcpy(&d, row + n + i / 32 * 8, 4);
        values[size_t(r) * n + i] = d * static_cast<float>(Q8Value(row, n, i));
      }
    }
  }
  const void* data() const {
    return q8 != nullptr ? static_cast<const void*>(q8->get()) : raw->get();
  }
  std::vector<float> values;
  std::unique_ptr<Device<float>> raw;
  std::unique_ptr<Device<uint8_t>> q8;
};

void ExpectDots(const std::vector<float>& w, const float* x, int rows, int n, const float* y,
                const std::string& what) {
  for (int r = 0; r < rows; ++r) {
    double sum = 0, magnitude = 0;
    for (int i = 0; i < n; ++i) {
      double product = double{w[size_t(r) * n + i]} * x[i];
      sum += product;
      magnitude += std::abs(product);
    }
    // Integer dots are exact; each of n / 32 terms rounds a few times, and lanes add up in a tree.
    // A minimum makes terms larger than the weight itself: at most 32 times (6-bit quants less 32).
    double tolerance = 1.2e-7 * (8 + n / 256.0) * 4 * magnitude + 1e-30;
    ExpectNear(y[r], sum, tolerance, what + " row " + std::to_string(r));
  }
}

GPU_TEST(EveryTypeDecodesBitForBit) {
  Random random(1);
  for (TensorType type : WeightTypes()) {
    const TypeTraits& t = Traits(type);
    size_t blocks = 8192 / t.block_weights + 3;
    std::vector<uint8_t> bytes = RandomBlocks(&random, int(type), blocks);
    std::vector<float> reference = DecodeAll(type, bytes);
    Device<uint8_t> w(bytes);
    Device<float> f32(reference.size());
    Device<uint16_t> bf16(reference.size());
    const WeightKernels* kernels = FindWeightKernels(type);
    CUDA_OK(kernels->decode_f32(w.get(), reference.size(), nullptr, 0, f32.get(), nullptr));
    CUDA_OK(kernels->decode_bf16(w.get(), reference.size(), bf16.get(), nullptr));
    std::vector<float> got = f32.Get();
    std::vector<uint16_t> got16 = bf16.Get();
    for (size_t i = 0; i < reference.size(); ++i) {
      // Equal as numbers: -0 for +0 is allowed, NaN is not.
      Expect(got[i] == reference[i], Name(type) + " weight " + std::to_string(i) + ": " +
                                         std::to_string(got[i]) + ", reference " +
                                         std::to_string(reference[i]));
      Expect(BFloat16ToFloat(got16[i]) == BFloat16ToFloat(FloatToBFloat16(reference[i])),
             Name(type) + " as bf16");
    }
    // Rows by id, as the embedding reads them.
    int n = int(t.block_weights), rows = int(blocks);
    std::vector<int32_t> ids = {rows - 1, 0, 2, 2};
    Device<int32_t> row_ids(ids);
    Device<float> gathered(ids.size() * n);
    CUDA_OK(
        kernels->decode_f32(w.get(), ids.size() * n, row_ids.get(), n, gathered.get(), nullptr));
    got = gathered.Get();
    for (size_t i = 0; i < got.size(); ++i) {
      Expect(got[i] == reference[size_t(ids[i / n]) * n + i % n], Name(type) + " gathered row");
    }
  }
}

GPU_TEST(ConvertedActivationsAreWithinHalfAStep) {
  Random random(2);
  int rows = 5, n = 160;
  std::vector<float> x = random.Normals(size_t(rows) * n, 3);
  for (int i = 0; i < 32; ++i) x[n + i] = 0;
  Device<float> device(x);
  Device<float> f32(x.size());
  Device<uint8_t> q8(rows * Q8RowBytes(n));
  Device<uint16_t> bf16(x.size());
  CUDA_OK(Convert(device.get(), rows, n, n, {.f32 = f32.get(), .q8 = q8.get(), .bf16 = bf16.get()},
                  nullptr));
  Expect(SameBits(f32.Get(), x), "f32 copy");
  std::vector<uint8_t> bytes = q8.Get();
  std::vector<uint16_t> halves = bf16.Get();
  for (int r = 0; r < rows; ++r) {
    const uint8_t* row = bytes.data() + r * Q8RowBytes(n);
    for (int b = 0; b < n / 32; ++b) {
      float ds[2], highest = 0;
      std::memcpy(ds, row + n + b * 8, 8);
      double sum = 0;
      for (int i = 0; i < 32; ++i) {
        size_t at = size_t(r) * n + b * 32 + i;
        int q = Q8Value(row, n, b * 32 + i);
        sum += q;
        highest = std::max(highest, std::abs(x[at]));
        ExpectNear(double{ds[0]} * q, x[at], 0.5001 * ds[0] + 1e-12, "q8 value");
        Expect(halves[at] == FloatToBFloat16(x[at]), "bf16 value");
      }
      ExpectNear(ds[0], highest / 127, 1e-6 * highest, "scale");
      ExpectNear(ds[1], ds[0] * sum, 1e-6 * std::abs(ds[0] * sum), "scaled sum");
    }
  }
}

GPU_TEST(EveryTypeMultipliesOneToEightTokens) {
  Random random(3);
  for (TensorType type : WeightTypes()) {
    const TypeTraits& t = Traits(type);
    int block = int(t.block_weights);
    std::vector<int> widths = {std::max(block, 32), 512, 2048, 2816, 6144};
    if (block == 32) widths.insert(widths.end(), {96, 192, 704});
    if (block == 1) widths.insert(widths.end(), {1, 37, 130});
    for (int n : widths) {
      if (n % block != 0) continue;
      for (int rows : {1, 37, 300}) {
        if (n > 2048 && rows == 300) continue;
        std::vector<uint8_t> bytes = RandomBlocks(&random, int(type), size_t(rows) * n / block);
        std::vector<float> w = DecodeAll(type, bytes);
        Device<uint8_t> weights(bytes);
        const WeightKernels* kernels = FindWeightKernels(type);
        Activations x(&random, kernels->f32_activations, 8, n);
        std::vector<float> singles;
        size_t row_bytes = kernels->f32_activations ? size_t(n) * 4 : Q8RowBytes(n);
        for (int tokens : {1, 2, 3, 5, 8}) {
          Device<float> y(size_t(tokens) * rows);
          MatVecArgs args;
          args.parts[0] = {.w = weights.get(), .y = y.get(), .rows = rows};
          args.n = n;
          args.x = x.data();
          args.tokens = tokens;
          CUDA_OK(kernels->mat_vec(args, nullptr));
          std::vector<float> got = y.Get();
          if (tokens == 8) {
            for (int k = 0; k < tokens; ++k) {
              ExpectDots(w, x.values.data() + size_t(k) * n, rows, n, got.data() + size_t(k) * rows,
                         Name(type) + " n " + std::to_string(n) + " rows " + std::to_string(rows));
            }
          }
          // Each token alone gives the same bits, and so does the same call again.
          for (int k = 0; k < tokens; ++k) {
            Device<float> alone(rows);
            args.parts[0].y = alone.get();
            args.tokens = 1;
            args.x = static_cast<const uint8_t*>(x.data()) + k * row_bytes;
            CUDA_OK(kernels->mat_vec(args, nullptr));
            std::vector<float> one = alone.Get();
            Expect(std::memcmp(one.data(), got.data() + size_t(k) * rows, rows * 4) == 0,
                   Name(type) + " n " + std::to_string(n) + ": token " + std::to_string(k) +
                       " of " + std::to_string(tokens) + " differs from the token alone");
          }
        }
      }
    }
  }
}

GPU_TEST(EveryTypeMultipliesExpertsOfPairs) {
  Random random(4);
  for (TensorType type : WeightTypes()) {
    const TypeTraits& t = Traits(type);
    for (int n : {256, 512, 2048}) {
      int rows[2] = {40, 9}, experts = 6, top_k = 3, tokens = 5, pairs = tokens * top_k;
      const WeightKernels* kernels = FindWeightKernels(type);
      Activations x(&random, kernels->f32_activations, tokens, n);
      // Expert e lies in slot `slot[e]`; some are owned elsewhere, some picks are void.
      std::vector<int32_t> slot = {3, -1, 0, 2, -1, 1};
      std::vector<int32_t> ids(pairs);
      for (int32_t& id : ids) id = random.Below(experts + 1) - 1;
      Device<int32_t> d_slot(slot), d_ids(ids);
      MatVecArgs args;
      std::vector<std::vector<float>> w;
      std::vector<std::unique_ptr<Device<uint8_t>>> weights;
      std::vector<std::unique_ptr<Device<float>>> y;
      for (int p = 0; p < 2; ++p) {
        std::vector<uint8_t> bytes =
            RandomBlocks(&random, int(type), size_t(4) * rows[p] * n / t.block_weights);
        w.push_back(DecodeAll(type, bytes));
        weights.emplace_back(new Device<uint8_t>(bytes));
        y.emplace_back(new Device<float>(size_t(pairs) * rows[p]));
        args.parts[p] = {.w = weights[p]->get(),
                         .expert_stride = bytes.size() / 4,
                         .y = y[p]->get(),
                         .rows = rows[p]};
      }
      args.num_parts = 2;
      args.n = n;
      args.x = x.data();
      args.tokens = pairs;
      args.experts = true;
      args.num_experts = experts;
      args.ids = d_ids.get();
      args.slot = d_slot.get();
      args.pairs_per_row = top_k;
      CUDA_OK(kernels->mat_vec(args, nullptr));
      for (int p = 0; p < 2; ++p) {
        std::vector<float> got = y[p]->Get();
        for (int pair = 0; pair < pairs; ++pair) {
          const float* values = got.data() + size_t(pair) * rows[p];
          int place = ids[pair] >= 0 ? slot[ids[pair]] : -1;
          if (place < 0) {
            Expect(std::isnan(values[0]) && std::isnan(values[rows[p] - 1]),
                   "a pair owned elsewhere was written");
            continue;
          }
          std::vector<float> matrix(w[p].begin() + size_t(place) * rows[p] * n,
                                    w[p].begin() + size_t(place + 1) * rows[p] * n);
          ExpectDots(matrix, x.values.data() + size_t(pair / top_k) * n, rows[p], n, values,
                     Name(type) + " expert");
        }
      }
    }
  }
}

// Groups of tokens with matrices of their own: groups without tokens and with more than one tile of
// them, rows and widths that fill no tile, two parts, gathered rows.
GPU_TEST(EveryTypeMultipliesGroupsOfTokens) {
  Random random(5);
  std::vector<int32_t> offsets = {0, 3, 3, 20, 93, 158, 286};
  int groups = static_cast<int>(offsets.size()) - 1, tokens = offsets.back(), x_rows = 40;
  for (TensorType type : WeightTypes()) {
    const WeightKernels* kernels = FindWeightKernels(type);
    if (kernels->mat_mul == nullptr) continue;
    const int block = int(Traits(type).block_weights);
    for (int n : {std::max(block, 96), 512, 1280}) {
      if (n % block != 0) continue;
      std::vector<uint16_t> x(size_t(x_rows) * n);
      for (uint16_t& v : x) v = FloatToBFloat16(random.Normal());
      std::vector<int32_t> index(tokens);
      for (int32_t& i : index) i = random.Below(x_rows);
      Device<uint16_t> d_x(x);
      Device<int32_t> d_offsets(offsets), d_index(index);
      MatMulArgs args{.num_parts = 2,
                      .n = n,
                      .x = d_x.get(),
                      .row_index = d_index.get(),
                      .groups = groups,
                      .offsets = d_offsets.get(),
                      .tokens = tokens};
      const int rows[2] = {37, 130}, stride[2] = {40, 130};
      std::vector<std::vector<float>> w;
      std::vector<std::unique_ptr<Device<uint8_t>>> weights;
      std::vector<std::unique_ptr<Device<float>>> y;
      for (int p = 0; p < 2; ++p) {
        std::vector<uint8_t> bytes =
            RandomBlocks(&random, int(type), size_t(groups) * rows[p] * n / block);
        w.push_back(DecodeAll(type, bytes));
        weights.emplace_back(new Device<uint8_t>(bytes));
        y.emplace_back(new Device<float>(size_t(tokens) * stride[p]));
        args.parts[p] = {.w = weights[p]->get(),
                         .expert_stride = bytes.size() / groups,
                         .y = y[p]->get(),
                         .y_stride = stride[p],
                         .rows = rows[p]};
      }
      CUDA_OK(kernels->mat_mul(args, nullptr));
      std::string what = Name(type) + " n " + std::to_string(n);
      for (int p = 0; p < 2; ++p) {
        std::vector<float> got = y[p]->Get();
        for (int g = 0; g < groups; ++g) {
          for (int t = offsets[g]; t < offsets[g + 1]; ++t) {
            for (int r = 0; r < rows[p]; ++r) {
              const float* row = w[p].data() + (size_t(g) * rows[p] + r) * n;
              const uint16_t* token = x.data() + size_t(index[t]) * n;
              double sum = 0, magnitude = 0, largest = 0;
              for (int i = 0; i < n; ++i) {
                double product =
                    double{BFloat16ToFloat(FloatToBFloat16(row[i]))} * BFloat16ToFloat(token[i]);
                sum += product, magnitude += std::abs(product);
                largest = std::max(largest, std::abs(product));
              }
              // Sums as in a Gemm; two weights may round to the other neighbour because scale
              // and minimum are applied with one rounding.
              ExpectNear(got[size_t(t) * stride[p] + r], sum,
                         (n / 16 + 4) * 2.4e-7 * magnitude + largest / 128, what);
            }
            if (stride[p] > rows[p])
              Expect(std::isnan(got[size_t(t) * stride[p] + rows[p]]), "written past the row");
          }
        }
      }
      // A token alone gives the same bits.
      Device<float> alone(rows[1]);
      args.parts[0] = args.parts[1];
      args.parts[0].y = alone.get();
      args.num_parts = 1;
      args.row_index = d_index.get() + 2;
      args.groups = 1;
      args.offsets = nullptr;
      args.tokens = 1;
      CUDA_OK(kernels->mat_mul(args, nullptr));
      std::vector<float> one = alone.Get(), all = y[1]->Get();
      Expect(std::memcmp(one.data(), all.data() + size_t(2) * stride[1], one.size() * 4) == 0,
             what + ": a token alone differs");
    }
  }
}

GPU_TEST(BadShapesAreRefused) {
  const WeightKernels* kernels = FindWeightKernels(TensorType::kQ4_K);
  MatVecArgs args;
  args.n = 128;  // half a block
  args.tokens = 1;
  Expect(kernels->mat_vec(args, nullptr) != 0, "half a block");
  args.n = 256;
  args.tokens = 9;
  Expect(kernels->mat_vec(args, nullptr) != 0, "nine tokens");
  Expect(FindWeightKernels(TensorType::kI32) == nullptr, "I32 is no weight type");
}

}  // namespace
}  // namespace packtrain::cuda
