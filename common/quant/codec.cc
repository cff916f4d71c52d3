#include "common/quant/codec.h"

#include <cstring>

#include "common/base/check.h"
#include "common/quant/float_types.h"
#include "common/quant/fp4.h"
#include "common/quant/iq_quants.h"
#include "common/quant/k_quants.h"
#include "common/quant/legacy.h"
#include "common/quant/ternary.h"

namespace packtrain {
namespace {

using enum TensorType;

struct Codec {
  TensorType type;
  void (*decode)(const uint8_t* block, float* weights);
  void (*encode)(const float* weights, uint8_t* block);  // nullptr where nobody needs it
};

constexpr Codec kCodecs[] = {
    {kF32, DecodeF32, EncodeF32},       {kF16, DecodeF16, EncodeF16},
    {kBF16, DecodeBF16, EncodeBF16},    {kF64, DecodeF64, nullptr},
    {kQ4_0, DecodeQ4_0, nullptr},       {kQ4_1, DecodeQ4_1, EncodeQ4_1},
    {kQ5_0, DecodeQ5_0, nullptr},       {kQ5_1, DecodeQ5_1, nullptr},
    {kQ8_0, DecodeQ8_0, EncodeQ8_0},    {kQ8_1, DecodeQ8_1, EncodeQ8_1},
    {kQ2_K, DecodeQ2_K, nullptr},       {kQ3_K, DecodeQ3_K, nullptr},
    {kQ4_K, DecodeQ4_K, EncodeQ4_K},    {kQ5_K, DecodeQ5_K, nullptr},
    {kQ6_K, DecodeQ6_K, nullptr},       {kQ8_K, DecodeQ8_K, EncodeQ8_K},
    {kIQ1_S, DecodeIQ1_S, nullptr},     {kIQ1_M, DecodeIQ1_M, nullptr},
    {kIQ2_XXS, DecodeIQ2_XXS, nullptr}, {kIQ2_XS, DecodeIQ2_XS, nullptr},
    {kIQ2_S, DecodeIQ2_S, nullptr},     {kIQ3_XXS, DecodeIQ3_XXS, nullptr},
    {kIQ3_S, DecodeIQ3_S, nullptr},     {kIQ4_NL, DecodeIQ4_NL, nullptr},
    {kIQ4_XS, DecodeIQ4_XS, nullptr},   {kTQ1_0, DecodeTQ1_0, nullptr},
    {kTQ2_0, DecodeTQ2_0, nullptr},     {kQ1_0, DecodeQ1_0, nullptr},
    {kQ2_0, DecodeQ2_0, nullptr},       {kMXFP4, DecodeMXFP4, nullptr},
    {kNVFP4, DecodeNVFP4, nullptr},
};

const Codec* FindCodec(TensorType type) {
  for (const Codec& c : kCodecs) {
    if (c.type == type) return &c;
  }
  return nullptr;
}

}  // namespace

bool CanDecode(TensorType type) { return FindCodec(type) != nullptr; }

bool CanEncode(TensorType type) {
  const Codec* codec = FindCodec(type);
  return codec != nullptr && codec->encode != nullptr;
}

void Decode(TensorType type, const void* blocks, size_t count, float* weights) {
  CHECK_MSG(CanDecode(type), TypeName(type));
  const TypeTraits& traits = Traits(type);
  CHECK(count % traits.block_weights == 0);
  if (type == kF32) {  // as below, without a call per weight
    std::memcpy(weights, blocks, count * sizeof(float));
    return;
  }
  const auto decode = FindCodec(type)->decode;
  const auto* block = static_cast<const uint8_t*>(blocks);
  for (size_t i = 0; i < count; i += traits.block_weights, block += traits.block_bytes) {
    decode(block, weights + i);
  }
}

void Encode(TensorType type, const float* weights, size_t count, void* blocks) {
  CHECK_MSG(CanEncode(type), TypeName(type));
  const TypeTraits& traits = Traits(type);
  CHECK(count % traits.block_weights == 0);
  const auto encode = FindCodec(type)->encode;
  auto* block = static_cast<uint8_t*>(blocks);
  for (size_t i = 0; i < count; i += traits.block_weights, block += traits.block_bytes) {
    encode(weights + i, block);
  }
}

}  // namespace packtrain
