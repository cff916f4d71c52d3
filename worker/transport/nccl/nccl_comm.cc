#include "worker/transport/nccl/nccl_comm.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <thread>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

// A hop of one token takes some ten microseconds: no sleep is that short.
constexpr std::chrono::microseconds kSpin(200);
constexpr std::chrono::microseconds kNap(50);

using WriteWord = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned);

// The driver's cuStreamWriteValue32, without linking the driver.
absl::StatusOr<WriteWord> FindWriteWord() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  RETURN_IF_CUDA(cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &function, 12000,
                                                  cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    return absl::FailedPreconditionError("the driver has no cuStreamWriteValue32");
  }
  return reinterpret_cast<WriteWord>(function);
}

}  // namespace

absl::StatusOr<NcclComm::Id> NcclComm::NewId() {
  ASSIGN_OR_RETURN(const NcclLibrary* nccl, LoadNccl());
  ncclUniqueId id;
  if (const ncclResult_t code = nccl->get_unique_id(&id); code != ncclSuccess) {
    return absl::UnavailableError(absl::StrFormat("NCCL: %s in ncclGetUniqueId: %s",
                                                  nccl->get_error_string(code),
                                                  nccl->get_last_error(nullptr)));
  }
  Id bytes;
  static_assert(sizeof id == sizeof bytes);
  std::memcpy(bytes.data(), &id, sizeof id);
  return bytes;
}

absl::StatusOr<std::unique_ptr<NcclComm>> NcclComm::Join(const Id& id, int rank, int device,
                                                         const std::atomic<bool>* closed,
                                                         Clock::time_point deadline) {
  ASSIGN_OR_RETURN(const NcclLibrary* nccl, LoadNccl());
  std::unique_ptr<NcclComm> comm(new NcclComm(nccl, rank, device, closed));
  RETURN_IF_ERROR(comm->Start(id, deadline));
  // NCCL connects two ranks when they first exchange something.
  DevicePlan memory;
  std::byte* byte = nullptr;
  memory.Add(&byte, 1);
  RETURN_IF_ERROR(memory.Allocate("an NCCL link", true));
  RETURN_IF_ERROR(rank == 0 ? comm->Send(byte, 1, deadline) : comm->Receive(byte, 1, deadline));
  return comm;
}

NcclComm::~NcclComm() {
  cudaSetDevice(device_);
  // In good order it would end only together with the other rank.
  Abort(absl::OkStatus()).IgnoreError();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status NcclComm::Start(const Id& id, Clock::time_point deadline) {
  RETURN_IF_CUDA(cudaSetDevice(device_));
  RETURN_IF_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  ASSIGN_OR_RETURN(word_, PinnedMemory::Allocate(sizeof *done_));
  done_ = new (word_->data()) std::atomic<uint32_t>(0);
  ncclUniqueId unique_id;
  std::memcpy(&unique_id, id.data(), sizeof unique_id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return Begun(nccl_->comm_init_rank_config(&comm_, 2, unique_id, rank_, &config),
               "ncclCommInitRankConfig", deadline);
}

absl::Status NcclComm::Send(const std::byte* data, size_t bytes, Clock::time_point deadline) {
  if (comm_ == nullptr) return absl::UnavailableError("the communicator was aborted");
  RETURN_IF_CUDA(cudaSetDevice(device_));
  RETURN_IF_ERROR(
      Begun(nccl_->send(data, bytes, ncclUint8, 1 - rank_, comm_, stream_), "ncclSend", deadline));
  return Finish("ncclSend", deadline);
}

absl::Status NcclComm::Receive(std::byte* data, size_t bytes, Clock::time_point deadline) {
  if (comm_ == nullptr) return absl::UnavailableError("the communicator was aborted");
  RETURN_IF_CUDA(cudaSetDevice(device_));
  RETURN_IF_ERROR(
      Begun(nccl_->recv(data, bytes, ncclUint8, 1 - rank_, comm_, stream_), "ncclRecv", deadline));
  return Finish("ncclRecv", deadline);
}

// Until NCCL has taken the call in.
absl::Status NcclComm::Begun(int code, std::string_view what, Clock::time_point deadline) {
  if (code != ncclSuccess && code != ncclInProgress) return Abort(Error(what, code));
  return Wait(what, calls_, deadline);
}

absl::Status NcclComm::Finish(std::string_view what, Clock::time_point deadline) {
  static const absl::StatusOr<WriteWord> write_word = FindWriteWord();
  if (!write_word.ok()) return Abort(write_word.status());
  const CUresult code = (*write_word)(stream_, reinterpret_cast<CUdeviceptr>(done_), ++calls_,
                                      CU_STREAM_WRITE_VALUE_DEFAULT);
  if (code != CUDA_SUCCESS) {
    return Abort(absl::InternalError(
        absl::StrFormat("CUDA: error %d in cuStreamWriteValue32 behind %s", code, what)));
  }
  return Wait(what, calls_, deadline);
}

absl::Status NcclComm::Wait(std::string_view what, uint32_t calls, Clock::time_point deadline) {
  const Clock::time_point begin = Clock::now();
  while (true) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = nccl_->comm_get_async_error(comm_, &state);
    if (code != ncclSuccess) return Abort(Error(what, code));
    if (state != ncclSuccess && state != ncclInProgress) return Abort(Error(what, state));
    if (state == ncclSuccess && done_->load(std::memory_order_acquire) == calls) {
      return absl::OkStatus();
    }
    const Clock::time_point now = Clock::now();
    if (closed_->load()) return Abort(absl::UnavailableError("the link is closed"));
    if (now >= deadline) {
      return Abort(
          absl::DeadlineExceededError(absl::StrFormat("%s: the other end is too slow", what)));
    }
    if (now - begin > kSpin) {
      std::this_thread::sleep_for(kNap);
    } else {
      std::this_thread::yield();
    }
  }
}

absl::Status NcclComm::Error(std::string_view what, int code) const {
  return absl::UnavailableError(absl::StrFormat(
      "NCCL: %s in %s: %s", nccl_->get_error_string(static_cast<ncclResult_t>(code)), what,
      nccl_->get_last_error(comm_)));
}

// Ends what waits on the GPU for the other rank, too.
absl::Status NcclComm::Abort(absl::Status why) {
  if (comm_ != nullptr) nccl_->comm_abort(comm_);
  comm_ = nullptr;
  return why;
}

}  // namespace packtrain
