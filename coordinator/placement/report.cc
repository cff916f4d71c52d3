#include "coordinator/placement/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/config/topology.h"

namespace packtrain {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kBarWidth = 40;

double Gib(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

size_t S(int value) { return static_cast<size_t>(value); }

std::string RangesText(const std::vector<LayerRange>& ranges) {
  return absl::StrJoin(ranges, ", ", [](std::string* out, const LayerRange& range) {
    out->append(RangeText(range));
  });
}

// What the letters of a bar stand for, in the order they are drawn.
struct BarPart {
  char letter;
  const char* name;
  std::vector<BillItem> items;
};
const std::vector<BarPart>& BarParts() {
  static const auto& parts = *new std::vector<BarPart>{
      {'w',
       "weights",
       {BillItem::kAttention, BillItem::kIndexer, BillItem::kFeedForward, BillItem::kEmbedding,
        BillItem::kHead}},
      {'E', "experts", {BillItem::kExperts}},
      {'k',
       "kv cache",
       {BillItem::kKv, BillItem::kIndexKeys, BillItem::kRecurrent, BillItem::kSnapshots}},
      {'b',
       "buffers",
       {BillItem::kBuffers, BillItem::kStreaming, BillItem::kTransport, BillItem::kGraphs}},
      {'r', "runtime", {BillItem::kRuntime}},
  };
  return parts;
}

MemoryBill TotalBill(const DeviceTotal& device) {
  MemoryBill bill;
  for (const DeviceUse& use : device.uses) bill += use.bill;
  return bill;
}

uint64_t PartBytes(const BarPart& part, const MemoryBill& bill) {
  uint64_t bytes = 0;
  for (const BillItem item : part.items) bytes += bill[item];
  return bytes;
}

std::string Bar(const DeviceTotal& device) {
  const MemoryBill bill = TotalBill(device);
  const double scale = device.memory > 0 ? kBarWidth / static_cast<double>(device.memory) : 0;
  std::string bar;
  double end = 0;
  for (const BarPart& part : BarParts()) {
    end += static_cast<double>(PartBytes(part, bill)) * scale;
    while (static_cast<double>(bar.size()) + 0.5 <= end && bar.size() < kBarWidth) {
      bar.push_back(part.letter);
    }
  }
  bar.resize(kBarWidth, '.');
  return bar;
}

void AppendStages(const DeploymentPlacement& d, std::string* out) {
  absl::StrAppendFormat(out, "  %-7s %-14s %-8s %-10s %-24s %-7s %s\n", "", "device", "layers",
                        "resident", "experts elsewhere", "threads", "to next");
  for (size_t i = 0; i < d.stages.size(); ++i) {
    const StagePlacement& s = d.stages[i];
    const std::string elsewhere =
        absl::StrJoin(s.remote_experts, ", ", [&](std::string* text, const ExpertsPart& part) {
          absl::StrAppend(text, RangeText(part.layers), " on ",
                          d.experts[S(part.worker)].device.text());
        });
    absl::StrAppendFormat(out, "  stage %-1d %-14s %-8s %-10s %-24s %-7d %s\n", i, s.device.text(),
                          RangeText(s.layers), RangeText(s.resident_experts),
                          elsewhere.empty() ? "-" : elsewhere, s.threads,
                          s.transport.empty() ? "head" : s.transport);
  }
  for (const ExpertsPlacement& e : d.experts) {
    absl::StrAppendFormat(out, "  experts %-14s %s, %d threads\n", e.device.text(),
                          RangesText(e.layers), e.threads);
  }
}

// "512: 95, 2048: 289".
std::string SpeedsText(const std::vector<SpeedAt>& speeds, int digits) {
  return absl::StrJoin(speeds, ", ", [&](std::string* out, const SpeedAt& at) {
    absl::StrAppendFormat(out, "%d: %.*f", at.tokens, digits, at.tokens_per_s);
  });
}

void AppendSpeed(const DeploymentPlacement& d, std::string* out) {
  const SpeedPrediction& speed = d.speed;
  absl::StrAppendFormat(out, "  decode  %.1f tokens/s, one stream at depth %d: %.1f ms a step\n",
                        speed.decode_tokens_per_s, speed.decode_depth, speed.decode_ms);
  for (const SpeedTerm& term : speed.decode_terms) {
    absl::StrAppendFormat(out, "          %6.1f ms  %-16s %s", term.ms, term.resource, term.work);
    if (term.bytes > 0) {
      absl::StrAppendFormat(out, ": %.2f GB at %.0f GB/s", term.bytes / 1e9, term.gb_per_s);
    }
    absl::StrAppend(out, term.resource == speed.decode_bound ? "  <- binding\n" : "\n");
  }
  absl::StrAppendFormat(
      out, "  prefill %.0f tokens/s, a prompt of %d in ubatches of %d, bound by %s\n",
      speed.prefill_tokens_per_s, speed.prompt, d.shape.max_tokens, speed.prefill_bound);
  if (!speed.decode.empty() && !speed.prefill.empty()) {
    absl::StrAppend(out, "  also    decode by depth ", SpeedsText(speed.decode, 1),
                    "; prefill by length of prompt ", SpeedsText(speed.prefill, 0), "\n");
  }
  for (const Alternative& a : d.alternatives) {
    if (a.fits) {
      absl::StrAppendFormat(out, "  choice  %s: decode %.1f, prefill %.0f tokens/s\n", a.choice,
                            a.decode_tokens_per_s, a.prefill_tokens_per_s);
    } else {
      absl::StrAppendFormat(out, "  choice  %s: does not fit\n", a.choice);
    }
  }
  for (const std::string& note : d.notes) absl::StrAppend(out, "  note    ", note, "\n");
}

Json RangeJson(const LayerRange& range) {
  if (range.empty()) return nullptr;
  return Json::array({range.first, range.last - 1});
}

Json SpeedsJson(const std::vector<SpeedAt>& speeds, const char* what) {
  Json json = Json::array();
  for (const SpeedAt& at : speeds) {
    json.push_back({{what, at.tokens}, {"tokens_per_s", at.tokens_per_s}});
  }
  return json;
}

Json DeploymentJson(const DeploymentPlacement& d) {
  Json json = {{"name", d.name},
               {"role", d.sidecar ? "sidecar" : "primary"},
               {"path", d.path},
               {"context", d.context},
               {"kv_cache", KvCacheName(d.shape.kv_cache)},
               {"kv_pages", d.shape.num_pages},
               {"slots", d.shape.num_slots},
               {"snapshots", d.shape.num_snapshots},
               {"ubatch", d.shape.max_tokens},
               {"streamed_rows", d.shape.streamed_rows},
               {"mtp", d.mtp}};
  json["stages"] = Json::array();
  for (const StagePlacement& s : d.stages) {
    Json experts = Json::array();
    for (const ExpertsPart& part : s.remote_experts) {
      experts.push_back({{"device", d.experts[S(part.worker)].device.text()},
                         {"layers", RangeJson(part.layers)}});
    }
    json["stages"].push_back({{"device", s.device.text()},
                              {"layers", RangeJson(s.layers)},
                              {"resident_experts", RangeJson(s.resident_experts)},
                              {"experts_elsewhere", std::move(experts)},
                              {"threads", s.threads},
                              {"transport", s.transport}});
  }
  json["experts"] = Json::array();
  for (const ExpertsPlacement& e : d.experts) {
    Json ranges = Json::array();
    for (const LayerRange& range : e.layers) ranges.push_back(RangeJson(range));
    json["experts"].push_back(
        {{"device", e.device.text()}, {"layers", std::move(ranges)}, {"threads", e.threads}});
  }
  Json terms = Json::array();
  for (const SpeedTerm& term : d.speed.decode_terms) {
    terms.push_back({{"resource", term.resource},
                     {"work", term.work},
                     {"bytes", term.bytes},
                     {"gb_per_s", term.gb_per_s},
                     {"ms", term.ms}});
  }
  json["predicted"] = {{"decode_tokens_per_s", d.speed.decode_tokens_per_s},
                       {"decode_ms", d.speed.decode_ms},
                       {"decode_depth", d.speed.decode_depth},
                       {"decode_bound", d.speed.decode_bound},
                       {"decode_terms", std::move(terms)},
                       {"decode", SpeedsJson(d.speed.decode, "depth")},
                       {"prefill", SpeedsJson(d.speed.prefill, "prompt")},
                       {"prompt", d.speed.prompt},
                       {"prefill_tokens_per_s", d.speed.prefill_tokens_per_s},
                       {"prefill_bound", d.speed.prefill_bound}};
  json["alternatives"] = Json::array();
  for (const Alternative& a : d.alternatives) {
    json["alternatives"].push_back({{"choice", a.choice},
                                    {"fits", a.fits},
                                    {"decode_tokens_per_s", a.decode_tokens_per_s},
                                    {"prefill_tokens_per_s", a.prefill_tokens_per_s}});
  }
  json["notes"] = d.notes;
  return json;
}

Json BillJson(const MemoryBill& bill) {
  Json json = Json::object();
  for (int i = 0; i < kNumBillItems; ++i) {
    const BillItem item = static_cast<BillItem>(i);
    if (bill[item] > 0) json[std::string(BillItemName(item))] = bill[item];
  }
  return json;
}

}  // namespace

std::string RangeText(const LayerRange& range) { return range.empty() ? "-" : FormatLayers(range); }

std::string KvCacheName(KvCacheType type) {
  constexpr const char* kNames[] = {"f32", "f16", "q8_0", "q4_1"};
  return kNames[static_cast<size_t>(type)];
}

std::string PlacementTable(const Placement& placement) {
  std::string out = absl::StrCat("Plan for ", placement.rig, "\n");
  for (const DeploymentPlacement& d : placement.deployments) {
    absl::StrAppendFormat(&out, "\n%s (%s): context %d, kv cache %s, %d slots, ubatch %d%s\n",
                          d.name, d.sidecar ? "sidecar" : "primary", d.context,
                          KvCacheName(d.shape.kv_cache), d.shape.num_slots, d.shape.max_tokens,
                          d.mtp ? ", mtp" : "");
    AppendStages(d, &out);
    AppendSpeed(d, &out);
  }
  absl::StrAppend(&out, "\nMemory in GiB");
  for (const BarPart& part : BarParts()) {
    absl::StrAppendFormat(&out, "%s%c %s", part.letter == 'w' ? " (" : ", ", part.letter,
                          part.name);
  }
  absl::StrAppend(&out, ")\n");
  for (const DeviceTotal& device : placement.devices) {
    absl::StrAppendFormat(&out, "  %-14s [%s] %6.1f of ", device.device.text(), Bar(device),
                          Gib(device.used()));
    if (device.memory > 0) {
      absl::StrAppendFormat(&out, "%.1f, limit %.1f\n", Gib(device.memory), Gib(device.capacity));
    } else {
      absl::StrAppend(&out, "an unknown size: its worker checks\n");
    }
    for (const DeviceUse& use : device.uses) {
      std::vector<std::string> items;
      for (int i = 0; i < kNumBillItems; ++i) {
        const BillItem item = static_cast<BillItem>(i);
        if (Gib(use.bill[item]) < 0.005) continue;
        items.push_back(
            absl::StrFormat("%s %.2f", std::string(BillItemName(item)), Gib(use.bill[item])));
      }
      absl::StrAppendFormat(&out, "      %-22s %s\n", use.worker, absl::StrJoin(items, ", "));
    }
  }
  return out;
}

std::string PlacementJson(const Placement& placement) {
  Json json = {{"rig", placement.rig}};
  json["deployments"] = Json::array();
  for (const DeploymentPlacement& d : placement.deployments) {
    json["deployments"].push_back(DeploymentJson(d));
  }
  json["devices"] = Json::array();
  for (const DeviceTotal& device : placement.devices) {
    Json uses = Json::array();
    for (const DeviceUse& use : device.uses) {
      Json json_use = {{"worker", use.worker},
                       {"predicted_bytes", use.bill.total()},
                       {"bill", BillJson(use.bill)}};
      if (use.actual) {
        for (const MemoryItem& item : CompareMemory(use.device, use.bill, *use.actual)) {
          json_use["loaded"][item.name] = {{"actual_bytes", item.actual},
                                           {"predicted_bytes", item.predicted}};
        }
      }
      uses.push_back(std::move(json_use));
    }
    json["devices"].push_back({{"device", device.device.text()},
                               {"memory_bytes", device.memory},
                               {"limit_bytes", device.capacity},
                               {"predicted_bytes", device.used()},
                               {"uses", std::move(uses)}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::vector<MemoryItem> CompareMemory(const DeviceName& device, const MemoryBill& bill,
                                      const WorkerMemory& actual) {
  std::vector<MemoryItem> items = {
      {"weights", actual.weights, bill.weights()},
      {"kv_cache", actual.kv, bill[BillItem::kKv] + bill[BillItem::kIndexKeys]},
      {"recurrent", actual.recurrent, bill[BillItem::kRecurrent] + bill[BillItem::kSnapshots]},
      {"buffers", actual.buffers, bill[BillItem::kBuffers] + bill[BillItem::kStreaming]},
  };
  if (device.is_cpu()) items.push_back({"process", actual.process, bill.total()});
  std::erase_if(items, [](const MemoryItem& item) { return item.actual == 0; });
  return items;
}

void SetActual(const std::string& deployment, const WorkerPlan& worker, const WorkerMemory& actual,
               Placement* placement) {
  for (DeviceTotal& device : placement->devices) {
    for (DeviceUse& use : device.uses) {
      if (use.worker == absl::StrCat(deployment, "/", worker.name) &&
          use.device.device == worker.device) {
        use.actual = actual;
      }
    }
  }
}

}  // namespace packtrain
