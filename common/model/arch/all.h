#pragma once

// The descriptions, each in the file of its name.

#include "common/model/arch/description.h"

namespace packtrain::arch {

extern const ArchDescription kGlmDsa;
extern const ArchDescription kQwen35moe;
extern const ArchDescription kDeepseek2;
extern const ArchDescription kDeepseek32;
extern const ArchDescription kQwen3moe;
extern const ArchDescription kGlm4moe;

}  // namespace packtrain::arch
