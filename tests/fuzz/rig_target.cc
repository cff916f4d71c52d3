#include <cmath>

#include "common/config/host_facts.h"
#include "common/config/rig.h"
#include "tests/fuzz/fuzz_targets.h"

namespace packtrain {
namespace {

std::string TextOf(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// A planner divides by rates: they are finite and not negative.
std::string RateFault(const HostFacts& host) {
  std::vector<double> rates = {host.experts_read_gb_per_s, host.experts_layer_us,
                               host.thread_round_trip_us, host.process_round_trip_us};
  const auto add_weights = [&](const std::vector<WeightRate>& all) {
    for (const WeightRate& rate : all) {
      rates.insert(rates.end(),
                   {rate.read_gb_per_s, rate.pass_gb_per_s, rate.tflops, rate.experts_gb_per_s,
                    rate.experts_down_gb_per_s, rate.experts_pass_gb_per_s, rate.experts_tflops});
    }
  };
  for (const ReadRate& rate : host.dram_read) rates.push_back(rate.gb_per_s);
  add_weights(host.weight_rates);
  for (const GpuFacts& gpu : host.gpus) {
    rates.insert(rates.end(), {gpu.read_gb_per_s, gpu.bf16_tflops, gpu.to_device_gb_per_s,
                               gpu.link_gt_per_s, gpu.product_us});
    add_weights(gpu.weight_rates);
    if (gpu.index < -1) return "a GPU with a strange index";
  }
  for (const double rate : rates) {
    if (!std::isfinite(rate) || rate < 0) return "a rate that is no rate";
  }
  return "";
}

}  // namespace

std::string FuzzRig(std::span<const std::byte> bytes) {
  const auto rig = ParseRig(TextOf(bytes), "fuzz.yaml");
  if (!rig.ok()) {
    const std::string message(rig.status().message());
    return message.starts_with("fuzz.yaml") ? "" : "an error without its place: " + message;
  }
  if (rig->hosts.empty()) return "a rig without hosts";
  for (const HostFacts& host : rig->hosts) {
    if (host.name.empty()) return "a host without name";
    if (rig->FindHost(host.name) == nullptr) return "a host that is not found";
    if (const std::string fault = RateFault(host); !fault.empty()) return fault;
    for (const HostFacts& other : rig->hosts) {
      if (!(rig->Network(host.name, other.name).gb_per_s > 0)) return "a network without rate";
    }
  }
  return "";
}

std::string FuzzHostFacts(std::span<const std::byte> bytes) {
  const auto facts = HostFactsFromJson(TextOf(bytes));
  if (!facts.ok()) return "";
  if (const std::string fault = RateFault(*facts); !fault.empty()) return fault;
  const std::string written = HostFactsToJson(*facts);
  const auto again = HostFactsFromJson(written);
  if (!again.ok()) return "what was written is refused: " + std::string(again.status().message());
  return HostFactsToJson(*again) == written ? "" : "written and read back, it is another";
}

}  // namespace packtrain
