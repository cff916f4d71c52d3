#pragma once

// The smallest models that each architecture allows, as GGUF bytes that can be spoiled.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "common/model/config.h"
#include "common/weights/gguf.h"

namespace packtrain {

using TinyValue = std::variant<uint32_t, float, bool, std::string, std::vector<int32_t>,
                               std::vector<bool>, std::vector<std::string>>;

struct TinyModel {
  std::map<std::string, TinyValue> keys;                // full names
  std::set<std::string> without;                        // tensors left out
  std::map<std::string, std::vector<uint64_t>> shapes;  // instead of the right ones, or added

  // Metadata only, or with all tensors that the description asks for.
  std::unique_ptr<GgufFile> Metadata();
  std::unique_ptr<GgufFile> File();

 private:
  std::string bytes_;
};

// With every required key and what else makes the model small.
TinyModel MakeTinyModel(const std::string& architecture);

std::vector<std::string> ArchitectureNames();

}  // namespace packtrain
