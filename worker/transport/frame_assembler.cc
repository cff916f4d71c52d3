#include "worker/transport/frame_assembler.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "proto/tensor.pb.h"
#include "worker/transport/bundle_codec.h"

namespace packtrain {
namespace {

constexpr size_t kFrameHeaderBytesMax = kMaxBundleHeaderBytes + 64;

// Reads a frame's bytes across its pieces.
class PieceReader {
 public:
  explicit PieceReader(std::span<const std::string_view> pieces) : pieces_(pieces) {
    for (const std::string_view piece : pieces) left_ += piece.size();
  }
  size_t left() const { return left_; }
  // REQUIRES: bytes <= left().
  void Read(void* to, size_t bytes) {
    auto* out = static_cast<char*>(to);
    left_ -= bytes;
    while (bytes > 0) {
      const std::string_view piece = pieces_[index_].substr(offset_, bytes);
      std::memcpy(out, piece.data(), piece.size());
      out += piece.size();
      bytes -= piece.size();
      offset_ += piece.size();
      if (offset_ == pieces_[index_].size()) {
        ++index_;
        offset_ = 0;
      }
    }
  }

 private:
  const std::span<const std::string_view> pieces_;
  size_t index_ = 0, offset_ = 0, left_ = 0;
};

absl::StatusOr<v1::FrameHeader> ReadHeader(PieceReader* reader, std::string* scratch) {
  uint32_t size = 0;
  if (reader->left() < sizeof size) return absl::DataLossError("frame without header");
  reader->Read(&size, sizeof size);
  if (size > kFrameHeaderBytesMax || size > reader->left()) {
    return absl::DataLossError(absl::StrFormat("frame header of %d bytes, allowed are %d", size,
                                               std::min(kFrameHeaderBytesMax, reader->left())));
  }
  scratch->resize(size);
  reader->Read(scratch->data(), size);
  v1::FrameHeader header;
  if (!header.ParseFromString(*scratch)) return absl::DataLossError("broken frame header");
  if (reader->left() > kFrameBytesMax) {
    return absl::DataLossError(
        absl::StrFormat("frame of %d bytes, allowed are %d", reader->left(), kFrameBytesMax));
  }
  return header;
}

}  // namespace

absl::StatusOr<bool> FrameAssembler::Add(std::span<const std::string_view> pieces, Bundle* bundle) {
  PieceReader reader(pieces);
  ASSIGN_OR_RETURN(const v1::FrameHeader header, ReadHeader(&reader, &scratch_));
  if (header.has_bundle() == begun_) return absl::DataLossError("frames out of order");
  if (!begun_) {
    ASSIGN_OR_RETURN(total_, ShapeBundle(header.bundle(), max_bytes_, bundle));
    received_ = tensor_ = offset_ = 0;
    begun_ = true;
  }
  if (reader.left() > total_ - received_) {
    return absl::DataLossError(
        absl::StrFormat("more payload than the %d bytes that the header tells", total_));
  }
  // A stream of these would never end.
  if (reader.left() == 0 && !header.last()) return absl::DataLossError("frame without payload");
  received_ += reader.left();
  while (reader.left() > 0) {
    BundleTensor& t = bundle->tensors[tensor_];
    const size_t piece = std::min(reader.left(), t.data.size() - offset_);
    reader.Read(t.data.data() + offset_, piece);
    offset_ += piece;
    if (offset_ == t.data.size()) {
      ++tensor_;
      offset_ = 0;
    }
  }
  if (!header.last()) return false;
  begun_ = false;
  if (received_ == total_) return true;
  return absl::DataLossError(
      absl::StrFormat("%d bytes of payload, the header tells %d", received_, total_));
}

}  // namespace packtrain
