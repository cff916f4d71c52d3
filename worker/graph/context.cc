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

const std::vector<RowBlock>& RunContext::CutRows(size_t max_rows, bool sparse) {
  row_blocks.clear();
  for (size_t row = 0; row < rows(); ++row) {
    const bool alone = sparse && selection.counts[row] >= 0;
    const bool joins = !row_blocks.empty() && !alone && row_blocks.back().rows < max_rows &&
                       sequence_of[row] == sequence_of[row - 1] &&
                       !(sparse && selection.counts[row - 1] >= 0);
    if (joins) {
      ++row_blocks.back().rows;
    } else {
      row_blocks.push_back({row, 1});
    }
  }
  return row_blocks;
}

size_t AttentionWork(const RunContext& run, size_t position_work) {
  size_t positions = 0;
  for (int32_t position : run.positions) positions += static_cast<size_t>(position) + 1;
  return positions * position_work;
}

}  // namespace packtrain
