#pragma once

// A plan as people and programs read it.

#include <string>

#include "coordinator/placement/placement.h"

namespace packtrain {

// Tables: per deployment its stages, experts workers, speed with its arithmetic, and what another
// choice would give; per device a bar and its bill. Layer ranges are inclusive.
std::string PlacementTable(const Placement& placement);

// The same as JSON. Sizes in bytes, layer ranges as [first, last] inclusive, null for none.
std::string PlacementJson(const Placement& placement);

// "26-51", "26", "-" for none; inclusive.
std::string RangeText(const LayerRange& range);
std::string KvCacheName(KvCacheType type);

}  // namespace packtrain
