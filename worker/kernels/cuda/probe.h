#pragma once

// Kernels that measure a device; see kernels.h for the conventions.

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {

// Reads `bytes` (a multiple of 16) once, as fast as memory allows. `sink` [1] keeps the reads
// alive.
int ReadMemory(const void* data, size_t bytes, uint32_t* sink, Stream stream);

// Answers `trips` flags: waits until *ping is 1, 2, ... and writes the same to *pong; both in
// mapped host memory. Ends by itself `deadline_ns` after it began, whether or not anybody asks.
int AnswerFlags(const uint32_t* ping, uint32_t* pong, uint32_t trips, uint64_t deadline_ns,
                Stream stream);

}  // namespace packtrain::cuda
