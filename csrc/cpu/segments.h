// Sums over the readers of each row of a table, in a fixed order: the same bits for any number of threads. A row with
// many readers is summed in pieces of fixed size, so that it does not keep one thread busy alone.
#pragma once

#include <vector>

#include "../grokfast.h"

namespace grokfast {

GF_CLONES static void add_row(float* __restrict sum, const float* __restrict x, int64_t width) {
  for (int64_t i = 0; i < width; ++i) sum[i] += x[i];
}

// out[k, :] = sum over the readers of row k, in order; add(sum, item) adds one of them to `width` floats. Rows of out
// lie `stride` floats apart.
template <typename Add>
void sum_segments(const Readers& readers, int64_t width, float* out, int64_t stride, int threads, const Add& add) {
  constexpr int64_t piece = 32;  // short, because a sum of sums rounds less
  struct Task {
    int64_t begin, end;
    float* sum;
  };
  struct Split {
    int64_t row, first, pieces;
  };
  std::vector<Split> splits;
  int64_t pieces = 0;
  for (int64_t k = 0; k < readers.rows; ++k) {
    const int64_t n = (readers.start[k + 1] - readers.start[k] + piece - 1) / piece;
    if (n > 1) splits.push_back({k, pieces, n}), pieces += n;
  }
  std::vector<float> partial(pieces * width);
  std::vector<Task> tasks;
  tasks.reserve(readers.rows + pieces);
  size_t split = 0;
  for (int64_t k = 0; k < readers.rows; ++k) {
    const int64_t begin = readers.start[k], end = readers.start[k + 1];
    if (split == splits.size() || splits[split].row != k) {
      tasks.push_back({begin, end, out + k * stride});
      continue;
    }
    for (int64_t i = 0; i < splits[split].pieces; ++i)
      tasks.push_back({begin + i * piece, begin + (i + 1) * piece < end ? begin + (i + 1) * piece : end,
                       partial.data() + (splits[split].first + i) * width});
    ++split;
  }
  const int64_t n_tasks = int64_t(tasks.size()), n_splits = int64_t(splits.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1)
  for (int64_t i = 0; i < n_tasks; ++i) {
    const Task& task = tasks[i];
    for (int64_t j = 0; j < width; ++j) task.sum[j] = 0.f;
    for (int64_t at = task.begin; at < task.end; ++at) add(task.sum, readers.items ? readers.items[at] : at);
  }
  for (int64_t s = 0; s < n_splits; ++s) {
    float* sum = out + splits[s].row * stride;
    for (int64_t j = 0; j < width; ++j) sum[j] = 0.f;
    for (int64_t i = 0; i < splits[s].pieces; ++i) add_row(sum, partial.data() + (splits[s].first + i) * width, width);
  }
}

}  // namespace grokfast
