#pragma once

// The worker process: command line, gRPC server with control, data and health services.

#include "worker/server/model_loader.h"

namespace packtrain {

// Runs until SIGTERM, SIGINT or a coordinator's Shutdown. Returns the exit status.
int RunWorker(int argc, char** argv, ModelLoader loader);

}  // namespace packtrain
