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

// One kind of memory of a worker.
struct MemoryItem {
  const char* name;
  uint64_t actual = 0, predicted = 0;
};
// What a worker holds beside its bill; kinds of which it has or tells nothing are left out.
std::vector<MemoryItem> CompareMemory(const DeviceName& device, const MemoryBill& bill,
                                      const WorkerMemory& actual);

// Enters what a worker of a deployment holds.
void SetActual(const std::string& deployment, const WorkerPlan& worker, const WorkerMemory& actual,
               Placement* placement);

}  // namespace packtrain
