#pragma once

// The grids of the codebook types in the forms that vector kernels look entries up in.

#include <cstdint>

namespace packtrain {

// Entries of four bytes, each at the start of eight with zeros behind it, and zeros before the
// first: eight bytes from an entry on hold nothing else, nor do those from four before it on.
template <int kEntries>
struct SpreadEntries {
  alignas(64) uint32_t dwords[2 * (kEntries + 1)];
  const uint8_t* first() const { return reinterpret_cast<const uint8_t*>(dwords + 2); }
};

// A grid entry as two code bytes, for lookups in registers: IQ2 keeps elements 0..3 in `low`
// (two bits each) and 4..7 in `high`, IQ3 elements 0 and 1 (three bits each) and 2 and 3.
struct GridTables {
  alignas(64) uint8_t iq2_xxs_low[256], iq2_xxs_high[256];
  alignas(64) uint8_t iq2_xs_low[512], iq2_xs_high[512];
  alignas(64) uint8_t iq2_s_low[1024], iq2_s_high[1024];
  alignas(64) uint8_t iq3_xxs_low[256], iq3_xxs_high[256];
  alignas(64) uint8_t iq3_s_low[512], iq3_s_high[512];

  // The same entries as bytes for lookups in memory, element 0 lowest, with the kernels' offset: 64
  // + magnitude of IQ2 and IQ3, 8 (level + 1) of IQ1.
  alignas(64) uint64_t iq1_bytes[2048];
  alignas(64) uint64_t iq2_xxs_bytes[256], iq2_xs_bytes[512], iq2_s_bytes[1024];
  SpreadEntries<256> iq3_xxs_spread;
  SpreadEntries<512> iq3_s_spread;
};

// Built at the first call; thread-safe.
const GridTables& Grids();

}  // namespace packtrain
