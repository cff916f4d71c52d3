#pragma once

// The tables that belong to the codebook types' format.
//
// A grid entry is a short vector of weights of which each takes one of a few levels, so it is
// stored as the codes (positions in the list of levels) of its elements, element 0 in the lowest
// bits: eight 2-bit codes for IQ1_* and IQ2_*, four 3-bit codes for IQ3_*. Kernels decode from the
// same codes in registers. Source: the published grids of the GGUF i-quant types.

#include <bit>
#include <cstdint>

namespace packtrain {

extern const uint16_t kIq1SCodes[2048];  // also IQ1_M
extern const uint16_t kIq2XxsCodes[256];
extern const uint16_t kIq2XsCodes[512];
extern const uint16_t kIq2SCodes[1024];
extern const uint16_t kIq3XxsCodes[256];
extern const uint16_t kIq3SCodes[512];

inline constexpr int8_t kIq1Levels[4] = {-1, 0, 1, 0};
inline constexpr int8_t kIq2Levels[4] = {8, 25, 43, 0};
inline constexpr int8_t kIq3XxsLevels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr int8_t kIq3SLevels[8] = {1, 3, 5, 7, 9, 11, 13, 15};

// IQ4_NL and IQ4_XS; MXFP4 and NVFP4 (twice the E2M1 value).
inline constexpr int8_t kIq4NlValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                            1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Where a file stores seven of eight signs, the eighth makes their number even.
constexpr uint32_t EvenSigns(uint32_t seven_bits) {
  return seven_bits | (static_cast<uint32_t>(std::popcount(seven_bits)) & 1) << 7;
}

}  // namespace packtrain
