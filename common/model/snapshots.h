#pragma once

namespace packtrain {

// Recurrent state is kept at multiples of so many positions of a prompt, so that another prompt may
// go on from there; no ubatch crosses one.
inline constexpr int kSnapshotInterval = 2048;

}  // namespace packtrain
