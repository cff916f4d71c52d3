#pragma once

// F32, F16, BF16, F64: one value per block.

#include <cstdint>

namespace packtrain {

void DecodeF32(const uint8_t* block, float* weights);
void DecodeF16(const uint8_t* block, float* weights);
void DecodeBF16(const uint8_t* block, float* weights);
void DecodeF64(const uint8_t* block, float* weights);  // rounded to f32

void EncodeF32(const float* weights, uint8_t* block);
void EncodeF16(const float* weights, uint8_t* block);
void EncodeBF16(const float* weights, uint8_t* block);

}  // namespace packtrain
