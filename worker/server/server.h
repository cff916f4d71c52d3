#pragma once

// The worker process: command line, gRPC server with control, data and health services.

#include <functional>
#include <string>

#include "worker/server/device_links.h"
#include "worker/server/model_loader.h"

namespace packtrain {

// Runs until SIGTERM, SIGINT or a coordinator's Shutdown. `links` is asked once, for the device of
// the command line. Returns the exit status.
int RunWorker(int argc, char** argv, ModelLoader loader,
              const std::function<DeviceLinks(const std::string& device)>& links);

}  // namespace packtrain
