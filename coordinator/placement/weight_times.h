#pragma once

// How long a device takes for weights: by type where its kernels were measured, else by shares of
// what its hardware could do.

#include <cstdint>
#include <vector>

#include "common/config/host_facts.h"
#include "common/model/bill.h"

namespace packtrain {

struct WeightTimes {
  std::vector<WeightRate> rates;
  double scale = 1;  // of the rates: this worker's part of the cores that were measured
  double read = 0;   // bytes/s of types that were not measured
  double flops = 0;  // of theirs, in long ubatches

  // Seconds to read `bytes` of weights once, for one token; `types` tells their mix.
  double Read(double bytes, const std::vector<TypeBytes>& types) const;
  // Seconds to multiply `parameters` weights, each with `tokens` tokens on average, of which
  // `bytes` are touched at all.
  double Multiply(double parameters, double tokens, double bytes,
                  const std::vector<TypeBytes>& types) const;
};

// Of routed experts.
struct ExpertTimes {
  WeightTimes gate_up, down;
  double tiles_at_once = 0;  // GPU: of a product in a long ubatch; 0: not known
};

}  // namespace packtrain
