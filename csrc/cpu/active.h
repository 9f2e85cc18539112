// Products with the hidden layer of a ReLU network, computed only where a unit is active: elsewhere the layer is exactly
// zero, and so is every term that is left out. Half of a layer's entries are, more or less, so this does half of the
// multiplications of a dense product, at about two thirds of its speed each. Weights are stored unit by unit, so that
// one entry of the hidden layer multiplies one row of them, `V` vectors long, which stays in registers or the first cache.
//
// Needs AVX-512 (32 registers); `active_products_work` says whether the processor has it.
#pragma once

#include "rows.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define GF_ACTIVE 1
#include <immintrin.h>

#define GF_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,bmi,bmi2,lzcnt,popcnt,fma,avx2")))
#define GF_AVX512_INLINE GF_AVX512 __attribute__((always_inline)) static inline

namespace grokfast {
namespace active {

constexpr int LANES = 16;
constexpr int MOST = 8;    // vectors in a row of weights
constexpr int ROWS = 64;   // of a tile: bits of a mask
constexpr int UNITS = 64;  // of a block of weights in the forward

// Which of n <= 64 entries are not zero; n a multiple of 16. NaN is not zero.
GF_AVX512_INLINE uint64_t mask_of(const float* x, int64_t n) {
  uint64_t mask = 0;
  for (int64_t i = 0; i < n; i += LANES)
    mask |= uint64_t(_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_NEQ_UQ)) << i;
  return mask;
}

// out[r, :] += sum_j h[r, j] weights[j, :] for rows of h [.., units] (units a multiple of 16) and weights [units, 16 V];
// rows of out lie `stride` floats apart.
template <int V>
GF_AVX512 static void add_products(const float* h, int64_t rows, int64_t units, const float* weights, float* out,
                                   int64_t stride) {
  for (int64_t begin = 0; begin < units; begin += UNITS) {
    const int64_t n = std::min<int64_t>(UNITS, units - begin);
    const float* block = weights + begin * LANES * V;
    for (int64_t r = 0; r < rows; ++r) {
      const float* own = h + r * units + begin;
      const float* next = begin + UNITS < units ? own + UNITS : h + (rows + r) * units;
      for (int i = 0; i < UNITS; i += LANES) __builtin_prefetch(next + i);  // in no order that a processor would guess
      float* to = out + r * stride;
      __m512 sum[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[v] = _mm512_setzero_ps();
      for (uint64_t mask = mask_of(own, n); mask; mask &= mask - 1) {
        const int64_t j = __builtin_ctzll(mask);
        const __m512 factor = _mm512_set1_ps(own[j]);
        const float* row = block + j * LANES * V;
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[v] = _mm512_fmadd_ps(factor, _mm512_loadu_ps(row + LANES * v), sum[v]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        _mm512_storeu_ps(to + LANES * v, _mm512_add_ps(_mm512_loadu_ps(to + LANES * v), sum[v]));
    }
  }
}

// grad[:] += sum over the set rows r of h[r] x[r, :]: the gradient of one unit's row of weights.
template <int V>
GF_AVX512_INLINE void add_gradient(uint64_t mask, const float* h, const float* x, int64_t x_stride, float* grad) {
  __m512 sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = _mm512_setzero_ps();
  for (; mask; mask &= mask - 1) {
    const int64_t r = __builtin_ctzll(mask);
    const __m512 factor = _mm512_set1_ps(h[r]);
    const float* row = x + r * x_stride;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = _mm512_fmadd_ps(factor, _mm512_loadu_ps(row + LANES * v), sum[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    _mm512_storeu_ps(grad + LANES * v, _mm512_add_ps(_mm512_loadu_ps(grad + LANES * v), sum[v]));
}

// The same, and parts[i] [16] receives what sums up to x[r] · weights for the i-th set row. Returns how many are set.
template <int V>
GF_AVX512_INLINE int64_t add_gradient_and_dots(uint64_t mask, const float* h, const float* x, int64_t x_stride,
                                               const float* weights, float* grad, float* parts) {
  __m512 sum[V], own[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = _mm512_setzero_ps(), own[v] = _mm512_loadu_ps(weights + LANES * v);
  int64_t n = 0;
  for (; mask; mask &= mask - 1, ++n) {
    const int64_t r = __builtin_ctzll(mask);
    const __m512 factor = _mm512_set1_ps(h[r]);
    const float* row = x + r * x_stride;
    __m512 dot[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      __m512 entries = _mm512_loadu_ps(row + LANES * v);
      asm("" : "+v"(entries));  // loaded once for both products
      sum[v] = _mm512_fmadd_ps(factor, entries, sum[v]);
      dot[v % 2] = v < 2 ? _mm512_mul_ps(entries, own[v]) : _mm512_fmadd_ps(entries, own[v], dot[v % 2]);
    }
    _mm512_storeu_ps(parts + LANES * n, _mm512_add_ps(dot[0], dot[1]));
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    _mm512_storeu_ps(grad + LANES * v, _mm512_add_ps(_mm512_loadu_ps(grad + LANES * v), sum[v]));
  return n;
}

// The sums of 16 vectors.
GF_AVX512_INLINE __m512 sums(const float* parts) {
  __m512 two[8], four[4];  // sums of pairs, then of four, interleaved
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 x = _mm512_loadu_ps(parts + 2 * LANES * i), y = _mm512_loadu_ps(parts + 2 * LANES * i + LANES);
    two[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(two[2 * i]), y = _mm512_castps_pd(two[2 * i + 1]);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                                   _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x88),
                                    _mm512_shuffle_f32x4(four[2], four[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

// to[i, j] = from[j, i], 16 by 16.
GF_AVX512_INLINE void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m512 x[16], y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_ps(from + i * from_stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(y[i]), b = _mm512_castps_pd(y[i + 1]);
    const __m512d c = _mm512_castps_pd(y[i + 2]), d = _mm512_castps_pd(y[i + 3]);
    x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x88);
    y[4 + i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xdd);
    y[8 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x88);
    y[12 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(y[i], y[8 + i], 0x88));
    _mm512_storeu_ps(to + (8 + i) * to_stride, _mm512_shuffle_f32x4(y[i], y[8 + i], 0xdd));
  }
}

// Of 16 units and a tile of rows, unit by unit.
struct alignas(64) Tile {
  float h[LANES * ROWS];     // the hidden layer
  float grad[LANES * ROWS];  // its gradient, zero where a unit is not active
  uint64_t mask[LANES];      // of rows
};

// Fills tile.h and tile.mask from `rows` (a multiple of 16) rows of h.
GF_AVX512_INLINE void load(Tile& tile, const float* h, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; r += LANES) transpose(h + r * stride, stride, tile.h + r, ROWS);
  for (int i = 0; i < LANES; ++i) tile.mask[i] = mask_of(tile.h + i * ROWS, rows);
}

// Fills tile.grad from x [rows, 16 V], the gradient of the products, and adds that of the 16 units' weights [16, 16 V].
template <int V>
GF_AVX512 static void backward(Tile& tile, int64_t rows, const float* x, int64_t x_stride, const float* weights,
                               float* grad_weights) {
  constexpr int64_t stride = LANES * V;
  constexpr int TOGETHER = 2;  // units, so that few of the 16 sums at a time are of nothing
  alignas(64) float parts[(TOGETHER * ROWS + LANES) * LANES], dots[TOGETHER * ROWS + LANES];
  for (int i = 0; i < LANES; i += TOGETHER) {
    int64_t n = 0;
    for (int k = i; k < i + TOGETHER; ++k)
      n += add_gradient_and_dots<V>(tile.mask[k], tile.h + k * ROWS, x, x_stride, weights + k * stride,
                                    grad_weights + k * stride, parts + LANES * n);
    for (int64_t at = 0; at < n; at += LANES) _mm512_storeu_ps(dots + at, sums(parts + LANES * at));
    const float* next = dots;
    for (int k = i; k < i + TOGETHER; ++k)
      for (int64_t r = 0; r < rows; r += LANES) {
        const __mmask16 some = __mmask16(tile.mask[k] >> r);
        _mm512_storeu_ps(tile.grad + k * ROWS + r, _mm512_maskz_expandloadu_ps(some, next));
        next += __builtin_popcount(some);
      }
  }
}

// A function for each number of vectors: ADD_PRODUCTS[V - 1].
#define GF_PER_VECTORS(f) {f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>}
constexpr decltype(&add_products<1>) ADD_PRODUCTS[MOST] = GF_PER_VECTORS(add_products);
constexpr decltype(&backward<1>) BACKWARD[MOST] = GF_PER_VECTORS(backward);

}  // namespace active
}  // namespace grokfast
#endif
