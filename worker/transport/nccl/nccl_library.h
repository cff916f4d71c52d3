#pragma once

// NCCL as the system has it: loaded when it is first asked for, so that a machine with one GPU
// needs none.

#include <nccl.h>

#include <string>

#include "absl/status/statusor.h"

namespace packtrain {

struct NcclLibrary {
  std::string version;  // "2.28.9"
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
};

// libnccl.so.2; once, it stays loaded. Thread-safe. Errors: FAILED_PRECONDITION with the loader's
// words, or for a version without communicators that do not block.
absl::StatusOr<const NcclLibrary*> LoadNccl();

}  // namespace packtrain
