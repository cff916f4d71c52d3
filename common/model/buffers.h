#pragma once

// What a stage takes for activations and scratch memory, and for experts on their way to a GPU:
// the part of a bill that is neither weights nor cache.

#include <cstdint>

#include "common/model/bill.h"

namespace packtrain {

// Of the device; `duties.device` says which kind.
uint64_t StageBufferBytes(const ModelFacts& model, const DeploymentShape& shape,
                          const StageDuties& duties);

// The ring of device memory that experts come through which lie in RAM. It keeps the link busy
// while a layer's other parts are computed, which take a GPU about 5 us a row (GLM-5.2, H200: 10 ms
// for 2048 rows), in which PCIe 5 copies 270 KB; and two pieces more, one being read and one being
// filled.
uint64_t ExpertRingBytes(const ModelFacts& model, const DeploymentShape& shape);
int ExpertRingSlots(int max_tokens);
// Values per row of Gated DeltaNet's inputs on a GPU. The room is used again by longer ubatches for
// what chunks of 64 tokens need, by head: a row of the size of a key, and its products with the
// chunk's keys.
int DeltaNetWidth(const DeltaNetConfig& delta);
// Rows of MLA's queries that a GPU works on at once; 64 heads in latent space take 0.5 MB of each.
inline constexpr int kMlaRows = 2048;
inline constexpr uint64_t kExpertPieceBytes = uint64_t{128} << 20;

}  // namespace packtrain
