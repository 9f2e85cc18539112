// Sums over rows, and over the readers of each row of a table, in a fixed order: the same bits for any number of threads.
// Many are summed in pieces of fixed size, so that they do not keep one thread busy alone.
#pragma once

#include "rows.h"

namespace grokfast {

constexpr int64_t PIECE = 32;  // short, because a sum of sums rounds less

// out = sum over `rows` rows; add(sum, row) adds one of them to `width` floats. Every thread has its own copy of `add`, so
// that what it holds stays in registers (5%).
template <typename Add>
void sum_all(int64_t rows, int64_t width, float* out, int threads, Add add) {
  const int64_t pieces = (rows + PIECE - 1) / PIECE;
  std::vector<float> sums(pieces * width);
#pragma omp parallel for num_threads(threads) schedule(static) firstprivate(add) if (threads > 1)
  for (int64_t p = 0; p < pieces; ++p)
    for (int64_t r = p * PIECE; r < rows && r < (p + 1) * PIECE; ++r) add(sums.data() + p * width, r);
  std::fill_n(out, width, 0.f);
  for (int64_t p = 0; p < pieces; ++p) add_row(out, sums.data() + p * width, width);
}

// out[k, :] = sum over the readers of row k, in order; add(sum, item) adds one of them to `width` floats. Rows of out
// lie `stride` floats apart.
template <typename Add>
void sum_segments(const Readers& readers, int64_t width, float* out, int64_t stride, int threads, const Add& add) {
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
    const int64_t n = (readers.start[k + 1] - readers.start[k] + PIECE - 1) / PIECE;
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
      tasks.push_back({begin + i * PIECE, std::min(begin + (i + 1) * PIECE, end),
                       partial.data() + (splits[split].first + i) * width});
    ++split;
  }
  const int64_t n_tasks = int64_t(tasks.size()), n_splits = int64_t(splits.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1)
  for (int64_t i = 0; i < n_tasks; ++i) {
    const Task& task = tasks[i];
    std::fill_n(task.sum, width, 0.f);
    for (int64_t at = task.begin; at < task.end; ++at) add(task.sum, readers.items ? readers.items[at] : at);
  }
  for (int64_t s = 0; s < n_splits; ++s) {
    float* sum = out + splits[s].row * stride;
    std::fill_n(sum, width, 0.f);
    for (int64_t i = 0; i < splits[s].pieces; ++i) add_row(sum, partial.data() + (splits[s].first + i) * width, width);
  }
}

}  // namespace grokfast
