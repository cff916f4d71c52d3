#include "worker/graph/ubatch_check.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

absl::Status CheckSequence(const UbatchSequence& sequence, const UbatchLimits& limits,
                           const ModelConfig& config) {
  const auto error = [&](std::string_view what, int64_t value, int64_t limit) {
    return absl::InvalidArgumentError(
        absl::StrFormat("slot %d: %s %d, allowed 0 to %d", sequence.slot, what, value, limit));
  };
  if (sequence.slot < 0 || sequence.slot >= limits.num_slots) {
    return error("slot", sequence.slot, limits.num_slots - 1);
  }
  if (sequence.start < 0) return error("start", sequence.start, config.context_length - 1);
  if (sequence.rows < 1 || sequence.tokens.size() != static_cast<size_t>(sequence.rows)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "slot %d: %d token ids for %d rows", sequence.slot, sequence.tokens.size(), sequence.rows));
  }
  if (sequence.start > config.context_length - sequence.rows) {
    return error("end position", int64_t{sequence.start} + sequence.rows, config.context_length);
  }
  for (TokenId token : sequence.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return error("token id", token, config.vocab_size - 1);
    }
  }
  const auto pages = static_cast<size_t>((sequence.start + sequence.rows - 1) / kPagePositions + 1);
  if (sequence.pages.size() < pages) {
    return error("position without a page", sequence.start + sequence.rows - 1,
                 static_cast<int64_t>(sequence.pages.size()) * kPagePositions - 1);
  }
  for (size_t i = 0; i < pages; ++i) {
    if (sequence.pages[i] < 0 || sequence.pages[i] >= limits.num_pages) {
      return error("page", sequence.pages[i], limits.num_pages - 1);
    }
  }
  for (int32_t snapshot : {sequence.restore_snapshot, sequence.save_snapshot}) {
    if (snapshot >= limits.num_snapshots)
      return error("snapshot", snapshot, limits.num_snapshots - 1);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckUbatch(const Ubatch& ubatch, const UbatchLimits& limits,
                         const ModelConfig& config) {
  int64_t rows = 0;
  std::vector<bool> seen(static_cast<size_t>(limits.num_slots));
  for (const UbatchSequence& sequence : ubatch.sequences) {
    RETURN_IF_ERROR(CheckSequence(sequence, limits, config));
    // Its rows would be computed side by side although they depend on each other.
    const auto slot = static_cast<size_t>(sequence.slot);
    if (seen[slot]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("slot %d occurs twice in a ubatch", sequence.slot));
    }
    seen[slot] = true;
    rows += sequence.rows;
  }
  if (rows != ubatch.rows || rows > limits.max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a ubatch of %d rows says it has %d, at most %d are allowed", rows,
                        ubatch.rows, limits.max_tokens));
  }
  for (const PageCopy& copy : ubatch.page_copies) {
    for (int32_t page : {copy.from, copy.to}) {
      if (page < 0 || page >= limits.num_pages) {
        return absl::InvalidArgumentError(
            absl::StrFormat("page copy: page %d, allowed 0 to %d", page, limits.num_pages - 1));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBundleTensor(const Bundle& bundle, std::string_view name, ElementType type,
                               int64_t rows, int64_t cols) {
  const BundleTensor* tensor = bundle.Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("the bundle has no tensor %s", name));
  }
  if (tensor->type != type || tensor->rows != rows || tensor->cols != cols ||
      (tensor->device == nullptr && tensor->data.size() != tensor->bytes())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("bundle tensor %s is %dx%d in %d bytes, wanted %dx%d", name, tensor->rows,
                        tensor->cols, tensor->data.size(), rows, cols));
  }
  return absl::OkStatus();
}

}  // namespace packtrain
