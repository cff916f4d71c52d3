#include "coordinator/placement/device_rates.h"

#include <algorithm>

#include "coordinator/placement/rates.h"

namespace packtrain {

double LinkOf(const GpuFacts& gpu) {
  if (gpu.to_device_gb_per_s > 0) return gpu.to_device_gb_per_s * 1e9;
  if (gpu.link_lanes > 0 && gpu.link_gt_per_s > 0) {
    return gpu.link_lanes * gpu.link_gt_per_s * 1e9 / 8 * 0.82;  // encoding and packet overhead
  }
  return 12e9;
}

bool IsNarrow(const GpuFacts& gpu) { return gpu.link_lanes == 1 || LinkOf(gpu) < kNarrowLink; }

int ThreadsOf(const HostFacts& host, int wished, int workers) {
  const int cores = std::max(host.cpu.cores, 1);
  return wished > 0 ? wished : std::max(cores / std::max(workers, 1), 1);
}

double DramOf(const HostFacts& host, int threads) {
  if (const double measured = host.DramRead(threads); measured > 0) return measured * 1e9;
  const double all = host.DramRead(0) > 0 ? host.DramRead(0) : 20;
  return all * 1e9 * std::min(1.0, threads / static_cast<double>(std::max(host.cpu.cores, 1)));
}

WeightTimes CpuTimes(const HostFacts& host, int threads, double read) {
  const double cores = std::max(host.cpu.cores, 1);
  WeightTimes times = {.rates = host.weight_rates,
                       .scale = std::min(threads / cores, 1.0),
                       .read = read,
                       .flops = threads * kCpuCoreFlops};
  for (WeightRate& rate : times.rates) {
    rate.tflops *= kCpuUbatchShare;
    rate.pass_gb_per_s *= kCpuUbatchShare;
  }
  return times;
}

WeightTimes CpuExpertTimes(const HostFacts& host, int threads) {
  WeightTimes times =
      CpuTimes(host, threads,
               host.experts_read_gb_per_s > 0 ? host.experts_read_gb_per_s * 1e9
                                              : DramOf(host, threads) * kExpertsReadShare);
  const double measured = host.experts_threads > 0 ? host.experts_threads : host.cpu.cores;
  const double part = std::min(threads / std::max(measured, 1.0), 1.0);
  for (WeightRate& rate : times.rates) {
    if (rate.experts_gb_per_s > 0) rate.read_gb_per_s = rate.experts_gb_per_s * part / times.scale;
  }
  return times;
}

WeightTimes GpuExpertTimes(const GpuFacts& gpu, double read, double flops, bool down) {
  WeightTimes times = {
      .rates = gpu.weight_rates, .read = read * kGpuPickedShare, .flops = flops * kGroupedShare};
  for (WeightRate& rate : times.rates) {
    const double picked =
        down && rate.experts_down_gb_per_s > 0 ? rate.experts_down_gb_per_s : rate.experts_gb_per_s;
    if (picked > 0) rate.read_gb_per_s = picked;
    if (rate.experts_tflops > 0) {
      rate.tflops = rate.experts_tflops;
      rate.pass_gb_per_s = rate.experts_pass_gb_per_s;
    }
  }
  return times;
}

double ExpertsLayerSeconds(const HostFacts& host) {
  return (host.experts_layer_us > 0 ? host.experts_layer_us : kExpertsLayerUs) * 1e-6;
}

}  // namespace packtrain
