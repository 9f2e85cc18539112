// Rows of floats.
#pragma once

#include <algorithm>
#include <vector>

#include "../grokfast.h"

namespace grokfast {

GF_CLONES static void add_row(float* __restrict sum, const float* __restrict x, int64_t width) {
  for (int64_t i = 0; i < width; ++i) sum[i] += x[i];
}

// A row, or zeros in the place of null.
class OrZeros {
  const float* row;
  std::vector<float> zeros;

 public:
  OrZeros(const float* row, int64_t width) : row(row), zeros(row ? 0 : width) {}
  const float* at(int64_t offset = 0) const { return row ? row + offset : zeros.data(); }
};

}  // namespace grokfast
