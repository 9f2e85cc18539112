// The products of products.h, made of the kernels of active.h.
#include "products.h"

#include <algorithm>

namespace grokfast {
namespace products {
namespace {

using active::kernels;
using active::Kernels;
using active::Marked;

// Calls of a kernel for all columns, in blocks of nearly equal width.
template <typename Call>
void in_blocks(int64_t columns, int64_t most, const Call& call) {
  const int64_t vectors = padded(columns) / LANES, blocks = (vectors + most - 1) / most;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = vectors * b / blocks, end = vectors * (b + 1) / blocks;
    call(end - begin, begin * LANES);
  }
}

}  // namespace

bool are_fast() {
  const std::string isa = kernels().name;
  return isa == "avx512" || isa == "avx2";
}

void mark(const float* x, int64_t n, int64_t columns, int64_t stride, uint64_t* masks) {
  const auto mask = kernels().mask;
  for (int64_t i = 0; i < n; ++i, x += stride)
    for (int64_t at = 0; at < columns; at += MARKED) *masks++ = mask(x + at, std::min(MARKED, padded(columns) - at));
}

void turn(const float* x, int64_t rows, int64_t columns, int64_t stride, float* to) {
  const auto turn_block = kernels().turn;
  const int64_t whole = rows / LANES * LANES;
  float rest[LANES * LANES];  // the last rows, and rows of zeros
  for (int64_t j = 0; j < columns; j += LANES, to += LANES * MARKED) {
    for (int64_t r = 0; r < whole; r += LANES) turn_block(x + r * stride + j, stride, to + r, MARKED);
    if (whole == MARKED) continue;
    std::fill_n(rest, LANES * LANES, 0.f);
    for (int64_t r = whole; r < rows; ++r) std::copy_n(x + r * stride + j, LANES, rest + (r - whole) * LANES);
    turn_block(rest, LANES, to + whole, MARKED);
    for (int i = 0; i < LANES; ++i) std::fill(to + i * MARKED + whole + LANES, to + (i + 1) * MARKED, 0.f);
  }
}

void add_product(const float* x, const uint64_t* masks, int64_t rows, int64_t units, const float* w, float* out,
                 int64_t columns) {
  const int64_t n_words = words(units), x_stride = stride_of(units), stride = stride_of(columns);
  const Kernels& with = kernels();
  for (int64_t k = 0; k < n_words; ++k)
    in_blocks(columns, with.most, [&](int64_t vectors, int64_t column) {
      const Marked m{std::min(MARKED, units - k * MARKED), masks + k, n_words, x + k * MARKED, x_stride,
                     w + k * MARKED * stride + column, stride, out + column, stride};
      with.add_marked[vectors - 1](m, rows);
    });
}

void add_gradient(const float* turned, const uint64_t* masks, int64_t units, const float* y, int64_t rows, float* grad,
                  int64_t columns) {
  const int64_t stride = stride_of(columns);
  const Kernels& with = kernels();
  in_blocks(columns, with.most, [&](int64_t vectors, int64_t column) {
    with.add_marked[vectors - 1]({rows, masks, 1, turned, MARKED, y + column, stride, grad + column, stride}, units);
  });
}

}  // namespace products
}  // namespace grokfast
