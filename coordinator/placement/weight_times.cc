#include "coordinator/placement/weight_times.h"

#include "common/quant/type.h"

namespace packtrain {
namespace {

const WeightRate* Find(const std::vector<WeightRate>& rates, TensorType type) {
  for (const WeightRate& rate : rates) {
    if (rate.type == TypeName(type)) return &rate;
  }
  return nullptr;
}

}  // namespace

double WeightTimes::Read(double bytes, const std::vector<TypeBytes>& types) const {
  double total = 0, seconds = 0;
  for (const TypeBytes& part : types) {
    const WeightRate* rate = Find(rates, part.type);
    const double measured = rate != nullptr ? rate->read_gb_per_s * 1e9 * scale : 0;
    total += static_cast<double>(part.bytes);
    seconds += static_cast<double>(part.bytes) / (measured > 0 ? measured : read);
  }
  return total > 0 ? seconds / total * bytes : bytes / read;
}

double WeightTimes::Multiply(double parameters, double tokens, double bytes,
                             const std::vector<TypeBytes>& types) const {
  double count = 0, total = 0, per_token = 0, once = 0;
  for (const TypeBytes& part : types) {
    const WeightRate* rate = Find(rates, part.type);
    const TypeTraits& traits = Traits(part.type);
    const double part_bytes = static_cast<double>(part.bytes);
    const double weights = part_bytes / traits.block_bytes * traits.block_weights;
    const double measured = rate != nullptr ? rate->tflops * 1e12 * scale : 0;
    count += weights;
    total += part_bytes;
    per_token += 2 * weights / (measured > 0 ? measured : flops);
    if (measured <= 0) {
      once += part_bytes / read;
    } else if (rate->pass_gb_per_s > 0) {
      once += part_bytes / (rate->pass_gb_per_s * 1e9 * scale);
    }
  }
  if (count == 0) return 2 * parameters * tokens / flops + bytes / read;
  return parameters * tokens * per_token / count + bytes * once / total;
}

}  // namespace packtrain
