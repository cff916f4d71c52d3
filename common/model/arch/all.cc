#include "common/model/arch/all.h"

namespace packtrain {
namespace {

constexpr const ArchDescription* kAll[] = {
    &arch::kGlmDsa,     &arch::kQwen35moe, &arch::kDeepseek2,
    &arch::kDeepseek32, &arch::kQwen3moe,  &arch::kGlm4moe,
};

}  // namespace

std::span<const ArchDescription* const> AllArchitectures() { return kAll; }

const ArchDescription* FindArchitecture(std::string_view name) {
  for (const ArchDescription* arch : kAll) {
    if (arch->name == name) return arch;
  }
  return nullptr;
}

}  // namespace packtrain
