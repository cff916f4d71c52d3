#include "coordinator/placement/weight_times.h"

#include <gtest/gtest.h>

#include "coordinator/placement/device_rates.h"

namespace packtrain {
namespace {

constexpr double kGb = 1e9;

TEST(WeightTimesTest, EveryTypeIsReadAtItsOwnRate) {
  const WeightTimes times = {
      .rates = {{"Q4_K", 100, 0, 0}, {"IQ2_XS", 50, 0, 0}}, .scale = 0.5, .read = 10 * kGb};
  const std::vector<TypeBytes> types = {
      {TensorType::kQ4_K, 100}, {TensorType::kIQ2_XS, 100}, {TensorType::kF32, 100}};
  // A third each at 50, 25 and, not measured, 10 GB/s.
  EXPECT_DOUBLE_EQ(times.Read(3 * kGb, types), 1 / 50.0 + 1 / 25.0 + 1 / 10.0);
  EXPECT_DOUBLE_EQ(times.Read(kGb, {}), 0.1);
}

TEST(WeightTimesTest, LongUbatchesCostAPassAndEveryToken) {
  const WeightTimes times = {.rates = {{"Q8_0", 100, 20, 2}}, .read = 10 * kGb, .flops = 1e12};
  const std::vector<TypeBytes> types = {{TensorType::kQ8_0, 34 << 20}};
  EXPECT_DOUBLE_EQ(times.Multiply(1e9, 8, 2e9, types), 2 * 1e9 * 8 / 2e12 + 2e9 / 20e9);
  const std::vector<TypeBytes> unknown = {{TensorType::kF16, 34 << 20}};
  EXPECT_DOUBLE_EQ(times.Multiply(1e9, 8, 2e9, unknown), 2 * 1e9 * 8 / 1e12 + 2e9 / 10e9);
}

// Weights in general were measured with all 16 cores, experts with 14 of them.
TEST(WeightTimesTest, ExpertsAreReadByTheShareOfThreadsThatTheyWereMeasuredWith) {
  const std::vector<TypeBytes> types = {{TensorType::kIQ2_XS, 100}};
  HostFacts host;
  host.weight_rates = {{.type = "IQ2_XS", .read_gb_per_s = 100, .experts_gb_per_s = 70}};
  host.experts_threads = 14;
  host.cpu.cores = 16;
  EXPECT_DOUBLE_EQ(CpuExpertTimes(host, 14).Read(kGb, types), 1 / 70.0);
  EXPECT_DOUBLE_EQ(CpuExpertTimes(host, 16).Read(kGb, types), 1 / 70.0);
  EXPECT_DOUBLE_EQ(CpuExpertTimes(host, 7).Read(kGb, types), 1 / 35.0);
  EXPECT_DOUBLE_EQ(CpuTimes(host, 8, kGb).Read(kGb, types), 1 / 50.0);
  host.experts_threads = 0;  // facts of before that was told
  EXPECT_DOUBLE_EQ(CpuExpertTimes(host, 8).Read(kGb, types), 1 / 35.0);
}

}  // namespace
}  // namespace packtrain
