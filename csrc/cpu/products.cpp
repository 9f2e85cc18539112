// The kernels of products.h for each kind of vector; the instruction set is the one that active.h's have.
#include "products.h"

#include <algorithm>
#include <cstring>

#include "active.h"

namespace grokfast {
namespace products {
namespace {

#define GF_NAME baseline
#define GF_TARGET
#define GF_FLOATS 4
#define GF_MOST 6
#include "products.inc"

#if defined(__x86_64__) && defined(__GNUC__)
#define GF_NAME avx2
#define GF_TARGET __attribute__((target("avx2,fma,bmi,bmi2")))
#define GF_FLOATS 8
#define GF_MOST 6
#include "products.inc"

#define GF_NAME avx512
#define GF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi,bmi2,lzcnt,popcnt")))
#define GF_FLOATS 16
#define GF_MOST 8
#include "products.inc"
#endif

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

const Kernels& kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* isa = active::kernels().name;
  if (!std::strcmp(isa, "avx512")) return avx512::KERNELS;
  if (!std::strcmp(isa, "avx2")) return avx2::KERNELS;
#endif
  return baseline::KERNELS;
}

bool are_fast() { return &kernels() != &baseline::KERNELS; }

void mark(const float* x, int64_t n, int64_t columns, int64_t stride, uint64_t* masks) {
  const auto mask_of = kernels().mask;
  for (int64_t i = 0; i < n; ++i, x += stride) {
    int64_t at = 0;
    for (; at + MARKED <= stride; at += MARKED)
      if (at < columns) *masks++ = mask_of(x + at);
    if (at >= columns) continue;
    float rest[MARKED] = {};
    std::copy_n(x + at, stride - at, rest);
    *masks++ = mask_of(rest);
  }
}

GF_CLONES void turn(const float* x, int64_t rows, int64_t columns, int64_t stride, float* to) {
  for (int64_t j = 0; j < columns; j += 8)  // 8 columns at a time: lines that are written stay near
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < 8 && j + i < columns; ++i) to[(j + i) * MARKED + r] = x[r * stride + j + i];
  if (rows < MARKED)
    for (int64_t j = 0; j < columns; ++j) std::fill_n(to + j * MARKED + rows, MARKED - rows, 0.f);
}

void add_product(const float* x, const uint64_t* masks, int64_t rows, int64_t units, const float* w, float* out,
                 int64_t columns) {
  const int64_t n_words = words(units), x_stride = stride_of(units), stride = stride_of(columns);
  const Kernels& with = kernels();
  for (int64_t k = 0; k < n_words; ++k)
    in_blocks(columns, with.most, [&](int64_t vectors, int64_t column) {
      const Marked m{masks + k, n_words, x + k * MARKED, x_stride, w + k * MARKED * stride + column, stride,
                     out + column, stride};
      with.add[vectors - 1](m, 0, rows);
    });
}

void add_gradient(const float* turned, const uint64_t* masks, int64_t units, const float* y, float* grad,
                  int64_t columns) {
  const int64_t stride = stride_of(columns);
  const Kernels& with = kernels();
  in_blocks(columns, with.most, [&](int64_t vectors, int64_t column) {
    with.add[vectors - 1]({masks, 1, turned, MARKED, y + column, stride, grad + column, stride}, 0, units);
  });
}

}  // namespace products
}  // namespace grokfast
