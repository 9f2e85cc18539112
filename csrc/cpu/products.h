// Products of a tile of rows that pass over zeros: a relu leaves them in about half of its entries, an image in its
// background. Both kinds are sums of rows, times marked factors:
//   of the tile's rows,    out[r, :] += sum_j x[r, j] w[j, :]    over the units j where x[r, :] is not zero;
//   of gradients' rows, grad[k, :] += sum_r x[r, k] y[r, :]    over the rows r where unit k is not zero.
// A sum stays in registers, and the 64 rows that it adds up, 96 or 128 columns of them, in the first cache.
#pragma once

#include "active.h"

namespace grokfast {
namespace products {

using active::LANES;  // columns come in whole vectors of so many

constexpr int64_t MARKED = active::ROWS;  // bits of a mask
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
// Floats from row to row of n columns: an odd number of cache lines, so that 64 rows do not fall on few of its sets.
inline int64_t stride_of(int64_t n) { return ((n + LANES - 1) / LANES | 1) * LANES; }
inline int64_t words(int64_t n) { return (n + MARKED - 1) / MARKED; }

// Whether they have been measured to beat torch's dense ones on the chosen instruction set: AVX2 or AVX-512.
bool are_fast();

// masks [n, words(columns)] of the rows of x, zeros from `columns` to the stride.
void mark(const float* x, int64_t n, int64_t columns, int64_t stride, uint64_t* masks);
// to [padded(columns), 64] = the transpose of x [rows, columns]; rows beyond are zeros.
void turn(const float* x, int64_t rows, int64_t columns, int64_t stride, float* to);
// out [rows, columns] += x w: x [rows, units] with its masks, w [units, columns]; strides are stride_of.
void add_product(const float* x, const uint64_t* masks, int64_t rows, int64_t units, const float* w, float* out,
                 int64_t columns);
// grad [units, columns] += xᵀ y over a tile: x as turned [units, 64] with masks [units], y [rows, columns].
void add_gradient(const float* turned, const uint64_t* masks, int64_t units, const float* y, int64_t rows, float* grad,
                  int64_t columns);

}  // namespace products
}  // namespace grokfast
