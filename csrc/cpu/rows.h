// Rows of floats, and memory for them.
#pragma once

#include <algorithm>
#include <cstdint>
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

// Memory from the beginning of a cache line on, zeros.
struct Scratch {
  std::vector<float> memory;
  float* data;
  explicit Scratch(int64_t n) : memory(n + 64 / sizeof(float)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + (64 - address % 64) % 64 / sizeof(float);
  }
};

}  // namespace grokfast
