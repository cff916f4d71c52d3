#include "worker/graph/context.h"

namespace packtrain {

void RunContext::SetBatch(const Ubatch& ubatch) {
  sequences = ubatch.sequences;
  positions.clear();
  sequence_of.clear();
  for (const UbatchSequence& sequence : sequences) {
    for (int32_t i = 0; i < sequence.rows; ++i) {
      positions.push_back(sequence.start + i);
      sequence_of.push_back(&sequence);
    }
  }
  rope.SetPositions(positions);
  selection.counts.assign(rows(), -1);
}

}  // namespace packtrain
