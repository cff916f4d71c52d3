#include "worker/transport/bundle_codec.h"

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "proto/tensor.pb.h"

namespace packtrain {

absl::StatusOr<size_t> CheckBundle(const Bundle& bundle, size_t max_bytes) {
  size_t total = 0;
  for (const BundleTensor& t : bundle.tensors) {
    if (t.name.size() > kMaxTensorNameBytes) {
      return absl::InvalidArgumentError(absl::StrFormat("tensor name of %d bytes, allowed are %d",
                                                        t.name.size(), kMaxTensorNameBytes));
    }
    if (t.data.size() != t.bytes()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor '%s': shape [%d, %d] needs %d bytes, has %d", t.name, t.rows,
                          t.cols, t.bytes(), t.data.size()));
    }
    total += t.bytes();
  }
  if (bundle.tensors.size() > kMaxBundleTensors || total > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("bundle of %d tensors and %d bytes, the link allows %d and %d",
                        bundle.tensors.size(), total, kMaxBundleTensors, max_bytes));
  }
  return total;
}

void EncodeBundleHeader(const Bundle& bundle, v1::BundleHeader* out) {
  out->set_epoch(bundle.epoch);
  out->set_step_id(bundle.step_id);
  for (const BundleTensor& t : bundle.tensors) {
    v1::TensorHeader* o = out->add_tensors();
    o->set_name(t.name);
    o->set_type(static_cast<uint32_t>(t.type));
    o->set_rows(t.rows);
    o->set_cols(t.cols);
  }
  if (!bundle.error.ok()) {
    out->set_error_code(WireCode(bundle.error));
    out->set_error(std::string(bundle.error.message()));
  }
}

absl::StatusOr<size_t> ShapeBundle(const v1::BundleHeader& header, size_t max_bytes,
                                   Bundle* bundle) {
  if (header.tensors_size() > static_cast<int>(kMaxBundleTensors)) {
    return absl::DataLossError(absl::StrFormat("bundle of %d tensors, allowed are %d",
                                               header.tensors_size(), kMaxBundleTensors));
  }
  size_t total = 0;
  for (const v1::TensorHeader& t : header.tensors()) {
    if (t.type() > static_cast<uint32_t>(ElementType::kU8)) {
      return absl::DataLossError(
          absl::StrFormat("tensor '%s': unknown element type %d", t.name(), t.type()));
    }
    if (t.name().size() > kMaxTensorNameBytes) {
      return absl::DataLossError(absl::StrFormat("tensor name of %d bytes, allowed are %d",
                                                 t.name().size(), kMaxTensorNameBytes));
    }
    // Elements first: times their size the product of two 32-bit numbers could pass 64 bits.
    const size_t elements = size_t{t.rows()} * t.cols();
    if (elements > max_bytes) {
      return absl::DataLossError(
          absl::StrFormat("tensor '%s': shape [%d, %d], the link allows %d "
                          "bytes",
                          t.name(), t.rows(), t.cols(), max_bytes));
    }
    total += elements * ElementBytes(static_cast<ElementType>(t.type()));
    if (total > max_bytes) {
      return absl::DataLossError(
          absl::StrFormat("bundle of more than the %d bytes that the link allows", max_bytes));
    }
  }
  bundle->epoch = header.epoch();
  bundle->step_id = header.step_id();
  bundle->error = StatusFromWire(header.error_code(), header.error());
  bundle->tensors.resize(static_cast<size_t>(header.tensors_size()));
  for (size_t i = 0; i < bundle->tensors.size(); ++i) {
    const v1::TensorHeader& t = header.tensors(static_cast<int>(i));
    bundle->Shape(i, t.name(), static_cast<ElementType>(t.type()), t.rows(), t.cols());
  }
  return total;
}

}  // namespace packtrain
