#include "common/quant/codec.h"
#include "common/quant/type.h"
#include "tests/gpu/harness.h"

namespace packtrain::gputest {
namespace {

void PutHalf(uint8_t* at, float value) {
  uint16_t bits = FloatToHalf(value);
  std::memcpy(at, &bits, 2);
}

// Where a block holds its f16 scales.
std::vector<int> ScaleOffsets(TensorType type) {
  switch (type) {
    case TensorType::kQ4_1:
    case TensorType::kQ5_1:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
      return {0, 2};
    case TensorType::kQ2_K:
      return {80, 82};
    case TensorType::kQ3_K:
      return {108};
    case TensorType::kQ6_K:
      return {208};
    case TensorType::kTQ1_0:
      return {52};
    case TensorType::kTQ2_0:
      return {64};
    case TensorType::kIQ1_M:
    case TensorType::kMXFP4:
    case TensorType::kNVFP4:
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return {};
    default:
      return {0};
  }
}

}  // namespace

std::vector<uint8_t> RandomBlocks(Random* random, int type_id, size_t blocks) {
  auto type = static_cast<TensorType>(type_id);
  const TypeTraits& traits = Traits(type);
  std::vector<uint8_t> bytes = random->Bytes(blocks * traits.block_bytes);
  std::vector<int> offsets = ScaleOffsets(type);
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t* block = bytes.data() + b * traits.block_bytes;
    for (int offset : offsets) PutHalf(block + offset, random->Normal(0.02f));
    switch (type) {
      case TensorType::kF32: {
        float v = random->Normal();
        std::memcpy(block, &v, 4);
        break;
      }
      case TensorType::kF16:
        PutHalf(block, random->Normal());
        break;
      case TensorType::kBF16: {
        uint16_t v = FloatToBFloat16(random->Normal());
        std::memcpy(block, &v, 2);
        break;
      }
      case TensorType::kMXFP4:
        block[0] = static_cast<uint8_t>(118 + random->Below(8));
        break;
      case TensorType::kNVFP4:
        for (int i = 0; i < 4; ++i) block[i] = static_cast<uint8_t>(random->Below(0x60));
        break;
      case TensorType::kIQ1_M: {
        uint16_t d = FloatToHalf(random->Normal(0.02f));
        for (int i = 0; i < 4; ++i) {
          block[49 + 2 * i] =
              static_cast<uint8_t>((block[49 + 2 * i] & 15) | (d >> 4 * i & 15) << 4);
        }
        break;
      }
      default:
        break;
    }
  }
  return bytes;
}

}  // namespace packtrain::gputest
