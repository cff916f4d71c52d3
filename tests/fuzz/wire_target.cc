#include <string_view>
#include <vector>

#include "common/rpc/step_codec.h"
#include "proto/control.pb.h"
#include "tests/fuzz/fuzz_targets.h"
#include "worker/transport/frame_assembler.h"

namespace packtrain {
namespace {

constexpr StepLimits kLimits{
    .num_slots = 8, .num_pages = 64, .num_snapshots = 4, .max_tokens = 128, .vocab_size = 1000};
constexpr size_t kMaxBytes = 1 << 16;

bool Below(int64_t value, int64_t limit) { return value >= 0 && value < limit; }

std::string CheckSequence(const StepSequence& s) {
  if (!Below(s.slot, kLimits.num_slots)) return "a slot that is not there";
  for (const TokenId token : s.tokens) {
    if (!Below(token, kLimits.vocab_size)) return "a token beyond the vocabulary";
  }
  for (const int32_t page : s.pages) {
    if (!Below(page, kLimits.num_pages)) return "a page that is not there";
  }
  for (const PageCopy& copy : s.page_copies) {
    if (!Below(copy.from, kLimits.num_pages) || !Below(copy.to, kLimits.num_pages)) {
      return "a copied page that is not there";
    }
  }
  if (!Below(int64_t{s.restore_snapshot} + 1, kLimits.num_snapshots + 1) ||
      !Below(int64_t{s.save_snapshot} + 1, kLimits.num_snapshots + 1)) {
    return "a snapshot that is not there";
  }
  if (!s.begin) return "";
  for (const TokenId token : s.begin->history) {
    if (!Below(token, kLimits.vocab_size)) return "a token of history beyond the vocabulary";
  }
  const SamplingParams& p = s.begin->sampling;
  if (!(p.temperature >= 0) || !(p.min_p <= 1)) return "sampling parameters without meaning";
  return static_cast<int64_t>(s.begin->history.size()) == s.start ? "" : "history has gaps";
}

std::string CheckStep(const v1::Step& in) {
  const auto step = DecodeStep(in, kLimits);
  if (!step.ok()) return absl::IsInvalidArgument(step.status()) ? "" : "another kind of error";
  int64_t rows = 0;
  for (const StepSequence& s : step->sequences) {
    if (std::string broken = CheckSequence(s); !broken.empty()) return broken;
    rows += s.num_tokens();
  }
  if (rows < 1 || rows > kLimits.max_tokens) return "more rows than a step may have";
  v1::Step again;
  EncodeStep(*step, &again);
  return DecodeStep(again, kLimits).ok() ? "" : "a step that is refused once it was encoded again";
}

}  // namespace

std::string FuzzStep(std::span<const std::byte> bytes) {
  v1::CoordinatorMessage message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return "";
  for (const v1::Step& step : message.steps().steps()) {
    if (std::string broken = CheckStep(step); !broken.empty()) return broken;
  }
  return "";
}

// Each frame stands behind two bytes with its length.
std::string FuzzFrames(std::span<const std::byte> bytes) {
  FrameAssembler assembler(kMaxBytes);
  Bundle bundle;
  while (bytes.size() >= 2) {
    const size_t wanted = static_cast<size_t>(bytes[0]) | static_cast<size_t>(bytes[1]) << 8;
    bytes = bytes.subspan(2);
    const size_t size = wanted < bytes.size() ? wanted : bytes.size();
    const std::string_view frame(reinterpret_cast<const char*>(bytes.data()), size);
    bytes = bytes.subspan(size);
    const std::string_view pieces[] = {frame.substr(0, size / 3), frame.substr(size / 3)};
    const auto complete = assembler.Add(pieces, &bundle);
    if (!complete.ok()) {
      return absl::IsDataLoss(complete.status()) ? "" : "another kind of error";
    }
    size_t total = 0;
    for (const BundleTensor& t : bundle.tensors) {
      if (t.data.size() != t.bytes()) return "a tensor without its bytes";
      total += t.data.size();
    }
    if (total > kMaxBytes) return "more bytes than the link allows";
  }
  return "";
}

}  // namespace packtrain
