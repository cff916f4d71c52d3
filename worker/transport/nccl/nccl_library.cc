#include "worker/transport/nccl/nccl_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

constexpr int kVersionMin = 21400;  // ncclCommInitRankConfig

absl::StatusOr<NcclLibrary> Load() {
  void* const handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot use NCCL: ", dlerror()));
  }
  NcclLibrary library;
  std::string missing;
  const auto find = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(handle, name));
    if (*function == nullptr) missing = name;
  };
  decltype(&ncclGetVersion) get_version = nullptr;
  find(&get_version, "ncclGetVersion");
  find(&library.get_unique_id, "ncclGetUniqueId");
  find(&library.comm_init_rank_config, "ncclCommInitRankConfig");
  find(&library.comm_get_async_error, "ncclCommGetAsyncError");
  find(&library.comm_abort, "ncclCommAbort");
  find(&library.send, "ncclSend");
  find(&library.recv, "ncclRecv");
  find(&library.get_error_string, "ncclGetErrorString");
  find(&library.get_last_error, "ncclGetLastError");
  if (!missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("cannot use NCCL: libnccl.so.2 has no %s", missing));
  }
  int version = 0;
  if (get_version(&version) != ncclSuccess || version < kVersionMin) {
    return absl::FailedPreconditionError(
        absl::StrFormat("cannot use NCCL: libnccl.so.2 is version %d, at least %d is needed",
                        version, kVersionMin));
  }
  library.version =
      absl::StrFormat("%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
  return library;
}

}  // namespace

absl::StatusOr<const NcclLibrary*> LoadNccl() {
  static const absl::StatusOr<NcclLibrary> library = Load();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace packtrain
