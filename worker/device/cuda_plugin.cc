#include "worker/device/cuda_plugin.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

absl::StatusOr<const CudaPlugin*> Load() {
  std::error_code error;
  const std::filesystem::path folder =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  std::string reasons;
  for (const std::filesystem::path& path :
       {folder / "libpacktrain_cuda.so", folder / "../lib/libpacktrain_cuda.so"}) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", dlerror());
      continue;
    }
    using Entry = const CudaPlugin* (*)();
    const auto entry = reinterpret_cast<Entry>(dlsym(library, "packtrain_cuda_plugin"));
    if (entry != nullptr) return entry();
    absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", dlerror());
    dlclose(library);
  }
  return absl::FailedPreconditionError(absl::StrCat("cannot use a GPU: ", reasons));
}

}  // namespace

absl::StatusOr<const CudaPlugin*> LoadCudaPlugin() {
  static const absl::StatusOr<const CudaPlugin*> plugin = Load();
  return plugin;
}

}  // namespace packtrain
