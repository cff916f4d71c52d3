#pragma once

// What happens when a mapped file turns out shorter than its mapping.

namespace packtrain {

// From now on a read beyond the end of a mapped file (somebody has shortened it, or its disk has
// failed) ends this process with one line on standard error and status 1. It cannot go on: the
// bytes that it needs are not there.
void ExitOnBusError();

}  // namespace packtrain
