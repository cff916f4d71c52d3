#pragma once

namespace packtrain {

// `packtrain-worker --probe [--probe-storage PATH ...] [--no-measure]`: prints what this host has
// and how fast it is as JSON, then ends. Returns the exit status.
int RunProbe(int argc, char** argv);

}  // namespace packtrain
