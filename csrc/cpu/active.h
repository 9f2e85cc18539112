// Products with the hidden layer of a ReLU network, computed only where a unit is active: elsewhere the layer is exactly
// zero, and so is every term that is left out. Half of a layer's entries are, more or less, so this does half of the
// multiplications of a dense product. Weights are stored unit by unit, so that one entry of the hidden layer multiplies
// one row of them, up to 8 times 16 floats long, whose products are summed in registers.
//
// One source (active_kernels.h) is compiled for each instruction set, with fused multiplications the same bits on all.
#pragma once

#include <string>
#include <vector>

#include "rows.h"

namespace grokfast {
namespace active {

constexpr int LANES = 16;  // floats that are summed side by side, in one register or in several
constexpr int MOST = 8;    // times so many in a row of weights
constexpr int ROWS = 64;   // of a tile: bits of a mask

inline bool fits(int64_t width) { return width > 0 && width % LANES == 0 && width / LANES <= MOST; }

// sums[i, :] += sum over the bits j of masks[i] of factors[i, j] rows[j, :].
struct Marked {
  int64_t bits;  // of a mask
  const uint64_t* masks;
  int64_t mask_stride;
  const float* factors;
  int64_t factor_stride;
  const float* rows;
  int64_t stride;
  float* sums;
  int64_t sum_stride;
};

struct Kernels {
  const char* name;
  int64_t most;  // times 16 sums at once: the more, the less one waits for another
  // out[r, :] += sum_j h[r, j] weights[j, :] for rows of h [.., units] (units a multiple of 16) and weights
  // [units, 16 vectors]; rows of out lie `stride` floats apart.
  void (*add_products)(int64_t vectors, const float* h, int64_t rows, int64_t units, const float* weights, float* out,
                       int64_t stride);
  // All that comes back through the units from begin to end.
  void (*backward_units)(const ActiveBackward& p, int64_t begin, int64_t end);
  // grad [rows, units] receives the gradient of the hidden layer's input from x [rows, 16 vectors], that of the products,
  // and grad_weights that of the weights is added to; rows <= 64, a multiple of 16.
  void (*backward_tile)(int64_t vectors, const float* h, int64_t rows, int64_t units, const float* x, int64_t stride,
                        const float* weights, float* grad_weights, float* grad);
  // out = relu(x + y + bias).
  void (*hidden_row)(const float* x, const float* y, const float* bias, float* out, int64_t width);
  // x · y; n a multiple of 16.
  float (*dot)(const float* x, const float* y, int64_t n);
  // A single class's part: grad += factor * weights where h is not zero, grad_weights += factor * h.
  void (*single_class)(float factor, const float* h, const float* weights, float* grad, float* grad_weights,
                       int64_t units);
  void (*add_to_two)(float* sum_x, float* sum_y, const float* grad, int64_t n);
  // Of n rows of masks and sums; 1 to MOST times 16 columns.
  void (*add_marked[MOST])(const Marked& m, int64_t n);
  uint64_t (*mask)(const float* x, int64_t n);  // which of n <= 64 are not zero; n a multiple of 16
  void (*turn)(const float* from, int64_t from_stride, float* to, int64_t to_stride);  // to = fromᵀ, 16 by 16
};

// Those of the chosen instruction set.
const Kernels& kernels();

}  // namespace active
}  // namespace grokfast
