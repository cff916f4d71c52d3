#include "worker/kernels/cpu/grid_tables.h"

#include "common/quant/codebooks.h"

namespace packtrain {
namespace {

template <int kBits, int kElements, int kEntries>
void Split(const uint16_t (&codes)[kEntries], uint8_t (&low)[kEntries], uint8_t (&high)[kEntries]) {
  constexpr int kHalf = kBits * kElements / 2;
  for (int i = 0; i < kEntries; ++i) {
    low[i] = static_cast<uint8_t>(codes[i] & ((1 << kHalf) - 1));
    high[i] = static_cast<uint8_t>(codes[i] >> kHalf);
  }
}

template <int kBits, int kElements, int kEntries, typename Entry>
void Expand(const uint16_t (&codes)[kEntries], const int8_t* levels, int factor, int offset,
            Entry (&bytes)[kEntries]) {
  for (int i = 0; i < kEntries; ++i) {
    bytes[i] = 0;
    for (int j = 0; j < kElements; ++j) {
      const int code = codes[i] >> (kBits * j) & ((1 << kBits) - 1);
      bytes[i] |= static_cast<Entry>(factor * levels[code] + offset) << (8 * j);
    }
  }
}

template <int kEntries>
void Spread(const uint16_t (&codes)[kEntries], const int8_t* levels,
            SpreadEntries<kEntries>* spread) {
  uint32_t bytes[kEntries];
  Expand<3, 4>(codes, levels, 1, 64, bytes);
  for (int i = 0; i < kEntries; ++i) spread->dwords[2 * (i + 1)] = bytes[i];
}

GridTables Build() {
  GridTables t = {};
  Split<2, 8>(kIq2XxsCodes, t.iq2_xxs_low, t.iq2_xxs_high);
  Split<2, 8>(kIq2XsCodes, t.iq2_xs_low, t.iq2_xs_high);
  Split<2, 8>(kIq2SCodes, t.iq2_s_low, t.iq2_s_high);
  Split<3, 4>(kIq3XxsCodes, t.iq3_xxs_low, t.iq3_xxs_high);
  Split<3, 4>(kIq3SCodes, t.iq3_s_low, t.iq3_s_high);
  Expand<2, 8>(kIq1SCodes, kIq1Levels, 8, 8, t.iq1_bytes);
  Expand<2, 8>(kIq2XxsCodes, kIq2Levels, 1, 64, t.iq2_xxs_bytes);
  Expand<2, 8>(kIq2XsCodes, kIq2Levels, 1, 64, t.iq2_xs_bytes);
  Expand<2, 8>(kIq2SCodes, kIq2Levels, 1, 64, t.iq2_s_bytes);
  Spread(kIq3XxsCodes, kIq3XxsLevels, &t.iq3_xxs_spread);
  Spread(kIq3SCodes, kIq3SLevels, &t.iq3_s_spread);
  return t;
}

}  // namespace

const GridTables& Grids() {
  static const GridTables tables = Build();
  return tables;
}

}  // namespace packtrain
