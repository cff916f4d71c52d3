#pragma once

// A stage that computes nothing of use but depends on everything it should: the "hidden state" of a
// row is a hash over token, position, layers and all rows cached before it in the slot's pages. So
// tokens agree over any cut into stages exactly if steps, pages, slots and links are handled right.

#include <memory>
#include <vector>

#include "worker/server/model_loader.h"

namespace packtrain {

inline constexpr int kFakeVocab = 97;

// Sequential reference: the token that follows `ids` in a model of `layers` layers, those from
// `expert_layer` on with experts.
TokenId FakeNextToken(const std::vector<TokenId>& ids, int layers, int expert_layer = 1 << 20);

// A loader for paths "fake:sleep_us=N,expert_layer=L,load_ms=M": every Run sleeps N us; with L,
// each layer from L on adds what the experts seam answers; loading takes M ms.
absl::StatusOr<LoadedModel> LoadFakeModel(const LoadRequest& request, ExpertsClient* experts,
                                          const LoadProgress& progress);

}  // namespace packtrain
