#include "worker/server/load_bill.h"

#include <fcntl.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/host_limits.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

absl::Status CheckRange(const ModelFacts& model, int first, int last) {
  const int layers = static_cast<int>(model.weights.layers.size());
  if (first >= 0 && first <= last && last <= layers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("layers [%d, %d): the model has %d layers", first, last, layers));
}

std::string BillText(const MemoryBill& bill) {
  std::string text;
  for (int i = 0; i < kNumBillItems; ++i) {
    const BillItem item = static_cast<BillItem>(i);
    if (bill[item] < (1 << 20)) continue;
    absl::StrAppendFormat(&text, "%s%s %d MiB", text.empty() ? "" : ", ",
                          std::string(BillItemName(item)), bill[item] >> 20);
  }
  return text;
}

}  // namespace

absl::StatusOr<MemoryBill> HostBillOf(const LoadRequest& request, const ModelFacts& model) {
  DeploymentShape shape;
  if (request.experts) {
    shape = {.max_tokens = request.experts->max_tokens,
             .streamed_rows = request.experts->streamed_rows};
    // It does not know which stages will ask it for more.
    shape.max_tokens = shape.ComputedRows();
    MemoryBill bill = ExpertsBaseBill(model, shape);
    for (const auto& [first, last] : request.experts->layers) {
      RETURN_IF_ERROR(CheckRange(model, first, last));
      for (int l = first; l < last; ++l) {
        bill[BillItem::kExperts] += model.weights.layers[static_cast<size_t>(l)].experts;
      }
    }
    return bill;
  }
  const StageSpec& s = *request.stage;
  RETURN_IF_ERROR(CheckRange(model, s.first_layer, s.last_layer));
  shape = {.kv_cache = s.kv_cache,
           .num_pages = std::max(s.num_pages, 0),
           .num_slots = std::max(s.num_slots, 0),
           .num_snapshots = std::max(s.num_snapshots, 0),
           .max_tokens = std::max(s.max_tokens, 0),
           .streamed_rows = s.streamed_rows};
  StageDuties duties = {.device = request.device == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda,
                        .embeds = s.embeds,
                        .has_head = s.has_head,
                        .receives = !s.embeds,
                        .sends = !s.has_head};
  for (int l = s.first_layer; l < s.last_layer; ++l) {
    const bool resident = l >= s.resident_first && l < s.resident_last;
    duties.asks_experts |= !resident && model.weights.layers[static_cast<size_t>(l)].experts > 0;
  }
  if (duties.device == DeviceKind::kCuda) return StageHostBill(model, shape, duties);
  return StageBill(model, shape, duties, s.first_layer, s.last_layer, s.resident_first,
                   s.resident_last);
}

absl::Status CheckHostBill(const LoadRequest& request, const ModelFacts& model) {
  ASSIGN_OR_RETURN(const MemoryBill bill, HostBillOf(request, model));
  uint64_t bytes = bill.total();
  const int seals = request.segment_fd >= 0 ? fcntl(request.segment_fd, F_GET_SEALS) : -1;
  if (seals >= 0 && (seals & F_SEAL_WRITE) != 0) bytes -= bill.weights();
  return CheckMemory(ReadMemoryLimits(""), bytes,
                     absl::StrCat("this worker (", BillText(bill), ")"));
}

}  // namespace packtrain
