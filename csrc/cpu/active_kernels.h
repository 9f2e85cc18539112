// What active.h offers, for one instruction set: included once for each, with GF_ISA its name, GF_TARGET the attribute that
// lets a function use it, FLOATS of a register and REGISTERS of the processor.
//
// Sums are of 16 lanes, in one order whatever a register holds. Columns that do not fit into the registers together are
// taken in parts.
namespace grokfast {
namespace active {
namespace GF_ISA {

#define GF_PART GF_TARGET __attribute__((always_inline)) static inline

constexpr int PER = LANES / FLOATS;                // registers for 16 lanes
constexpr int SUMS = (REGISTERS - 4) / PER;        // times 16 lanes that are summed at once
constexpr int PAIRS = (REGISTERS - 2) / PER - 2;   // the same beside two sums of products
constexpr int UNITS = 64;                          // of a block of weights in the forward

typedef float Vector __attribute__((vector_size(4 * FLOATS)));
typedef float Unaligned __attribute__((vector_size(4 * FLOATS), aligned(4), may_alias));

GF_PART Vector load(const float* x) { return *reinterpret_cast<const Unaligned*>(x); }
GF_PART Vector all(float x) { return x - Vector{}; }
GF_PART void store(float* x, Vector y) { *reinterpret_cast<Unaligned*>(x) = y; }

// x y + z, rounded once where the processor can; nonzero(x) has a bit for each lane that is not zero (NaN is not); of four lanes at a time low
// is x0 y0 x1 y1 and high x2 y2 x3 y3, low_pairs x0 x1 y0 y1 and high_pairs x2 x3 y2 y3.
#if FLOATS == 16
GF_PART Vector fma(Vector x, Vector y, Vector z) { return _mm512_fmadd_ps(x, y, z); }
GF_PART uint64_t nonzero(Vector x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
GF_PART Vector low(Vector x, Vector y) { return _mm512_unpacklo_ps(x, y); }
GF_PART Vector high(Vector x, Vector y) { return _mm512_unpackhi_ps(x, y); }
GF_PART Vector low_pairs(Vector x, Vector y) { return Vector(_mm512_unpacklo_pd(__m512d(x), __m512d(y))); }
GF_PART Vector high_pairs(Vector x, Vector y) { return Vector(_mm512_unpackhi_pd(__m512d(x), __m512d(y))); }
GF_PART Vector even_quarters(Vector x, Vector y) { return _mm512_shuffle_f32x4(x, y, 0x88); }
GF_PART Vector odd_quarters(Vector x, Vector y) { return _mm512_shuffle_f32x4(x, y, 0xdd); }
#elif FLOATS == 8
GF_PART Vector fma(Vector x, Vector y, Vector z) { return _mm256_fmadd_ps(x, y, z); }
GF_PART uint64_t nonzero(Vector x) {
  return uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
}
GF_PART Vector low(Vector x, Vector y) { return _mm256_unpacklo_ps(x, y); }
GF_PART Vector high(Vector x, Vector y) { return _mm256_unpackhi_ps(x, y); }
GF_PART Vector low_pairs(Vector x, Vector y) { return Vector(_mm256_unpacklo_pd(__m256d(x), __m256d(y))); }
GF_PART Vector high_pairs(Vector x, Vector y) { return Vector(_mm256_unpackhi_pd(__m256d(x), __m256d(y))); }
#else
typedef int Places __attribute__((vector_size(4 * FLOATS)));
#if defined(__clang__)
#define GF_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else  // that GCC has from 12 on only
#define GF_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Places{__VA_ARGS__})
#endif
#if defined(__aarch64__)
GF_PART Vector fma(Vector x, Vector y, Vector z) { return vfmaq_f32(z, x, y); }
#else
GF_PART Vector fma(Vector x, Vector y, Vector z) { return x * y + z; }
#endif
GF_PART uint64_t nonzero(Vector x) {
  const Places bits = (x != Vector{}) & Places{1, 2, 4, 8};
  return uint64_t(bits[0] | bits[1] | bits[2] | bits[3]);
}
GF_PART Vector low(Vector x, Vector y) { return GF_SHUFFLE(x, y, 0, 4, 1, 5); }
GF_PART Vector high(Vector x, Vector y) { return GF_SHUFFLE(x, y, 2, 6, 3, 7); }
GF_PART Vector low_pairs(Vector x, Vector y) { return GF_SHUFFLE(x, y, 0, 1, 4, 5); }
GF_PART Vector high_pairs(Vector x, Vector y) { return GF_SHUFFLE(x, y, 2, 3, 6, 7); }
#undef GF_SHUFFLE
#endif

// Which of n <= 64 entries are not zero; n a multiple of 16.
GF_PART uint64_t mask_of(const float* x, int64_t n) {
  uint64_t mask = 0;
  for (int64_t i = 0; i < n; i += FLOATS) mask |= nonzero(load(x + i)) << i;
  return mask;
}

// How many of `left` times 16 columns are taken next, where `most` can be.
constexpr int share(int left, int most) {
  const int parts = (left + most - 1) / most;
  return (left + parts - 1) / parts;
}

// to[:] += sum over the set bits i of factors[i] rows[i, :], 16 V columns of rows that lie `stride` floats apart.
template <int V>
GF_PART void add_set(uint64_t mask, const float* factors, const float* rows, int64_t stride, float* to) {
  constexpr int N = share(V, SUMS);
  Vector sum[N * PER];
#pragma GCC unroll 32
  for (int v = 0; v < N * PER; ++v) sum[v] = Vector{};
  for (uint64_t left = mask; left; left &= left - 1) {
    const int64_t i = __builtin_ctzll(left);
    const float* row = rows + i * stride;
    const Vector factor = all(factors[i]);
#pragma GCC unroll 32
    for (int v = 0; v < N * PER; ++v) sum[v] = fma(factor, load(row + FLOATS * v), sum[v]);
  }
#pragma GCC unroll 32
  for (int v = 0; v < N * PER; ++v) store(to + FLOATS * v, load(to + FLOATS * v) + sum[v]);
  if constexpr (N < V) add_set<V - N>(mask, factors, rows + N * LANES, stride, to + N * LANES);
}

template <int V>
GF_TARGET void add_products(const float* h, int64_t rows, int64_t units, const float* weights, float* out,
                            int64_t stride) {
  for (int64_t begin = 0; begin < units; begin += UNITS) {
    const int64_t n = std::min<int64_t>(UNITS, units - begin);
    for (int64_t r = 0; r < rows; ++r) {
      const float* own = h + r * units + begin;
      const float* next = begin + UNITS < units ? own + UNITS : h + (rows + r) * units;
      for (int i = 0; i < UNITS; i += LANES) __builtin_prefetch(next + i);  // in no order that a processor would guess
      add_set<V>(mask_of(own, n), own, weights + begin * LANES * V, LANES * V, out + r * stride);
    }
  }
}

#if defined(__x86_64__)
#define GF_LOADED_ONCE(x) asm("" : "+v"(x))
#else
#define GF_LOADED_ONCE(x)
#endif

// The same of all n rows, whose sums go to two rows at once, with factors of their own: a row is loaded once for both.
template <int V>
GF_PART void add_all_to_two(int64_t n, const float* factors, int64_t factor_stride, const float* rows, int64_t stride,
                            float* to, int64_t to_stride) {
  Vector x[V * PER], y[V * PER];
#pragma GCC unroll 32
  for (int v = 0; v < V * PER; ++v) x[v] = y[v] = Vector{};
  for (int64_t i = 0; i < n; ++i, rows += stride) {
    const Vector of_x = all(factors[i]), of_y = all(factors[factor_stride + i]);
#pragma GCC unroll 32
    for (int v = 0; v < V * PER; ++v) {
      Vector entries = load(rows + FLOATS * v);
      GF_LOADED_ONCE(entries);
      x[v] = fma(of_x, entries, x[v]);
      y[v] = fma(of_y, entries, y[v]);
    }
  }
#pragma GCC unroll 32
  for (int v = 0; v < V * PER; ++v) {
    store(to + FLOATS * v, load(to + FLOATS * v) + x[v]);
    store(to + to_stride + FLOATS * v, load(to + to_stride + FLOATS * v) + y[v]);
  }
}

// Two rows that are nearly full are not looked through: zeros that are added change no bit.
template <int V>
GF_TARGET void add_marked(const Marked& m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t* mask = m.masks + i * m.mask_stride;
    const float* factors = m.factors + i * m.factor_stride;
    float* to = m.sums + i * m.sum_stride;
    if constexpr ((2 * V + 1) * PER + 2 <= REGISTERS)
      if (i + 1 < n && 4 * (__builtin_popcountll(mask[0]) + __builtin_popcountll(mask[m.mask_stride])) > 6 * m.bits) {
        add_all_to_two<V>(m.bits, factors, m.factor_stride, m.rows, m.stride, to, m.sum_stride);
        ++i;
        continue;
      }
    add_set<V>(mask[0], factors, m.rows, m.stride, to);
  }
}

// grad[:] += sum over the set rows r of h[r] x[r, :], the gradient of one unit's weights, and parts[i] [16] receives what
// sums up to x[r] · weights for the i-th set row. Returns how many are set.
template <int V, int FIRST = 0>
GF_PART int64_t add_set_and_dots(uint64_t mask, const float* h, const float* x, int64_t x_stride, const float* weights,
                                 float* grad, float* parts) {
  constexpr int N = share(V - FIRST, std::max(PAIRS, 1));
  constexpr bool is_last = FIRST + N == V;
  Vector sum[N * PER], own[N * PER];
#pragma GCC unroll 32
  for (int i = 0; i < N * PER; ++i) sum[i] = Vector{}, own[i] = load(weights + LANES * FIRST + FLOATS * i);
  int64_t n = 0;
  for (uint64_t left = mask; left; left &= left - 1, ++n) {
    const int64_t r = __builtin_ctzll(left);
    const float* row = x + r * x_stride + LANES * FIRST;
    const Vector factor = all(h[r]);
    Vector dot[2 * PER];  // of even and of odd times 16 columns; of the columns before, twice as far into parts
#pragma GCC unroll 8
    for (int i = 0; i < 2 * PER; ++i) dot[i] = FIRST ? load(parts + 2 * LANES * n + FLOATS * i) : Vector{};
#pragma GCC unroll 32
    for (int i = 0; i < N * PER; ++i) {
      Vector entries = load(row + FLOATS * i);
      GF_LOADED_ONCE(entries);  // for both products
      const int at = FIRST * PER + i, which = at % (2 * PER);
      sum[i] = fma(factor, entries, sum[i]);
      dot[which] = at < 2 * PER ? entries * own[i] : fma(entries, own[i], dot[which]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * PER; ++i)
      if (!is_last)
        store(parts + 2 * LANES * n + FLOATS * i, dot[i]);
      else if (i < PER)
        store(parts + LANES * n + FLOATS * i, dot[i] + dot[PER + i]);
  }
#pragma GCC unroll 32
  for (int i = 0; i < N * PER; ++i) {
    float* to = grad + LANES * FIRST + FLOATS * i;
    store(to, load(to) + sum[i]);
  }
  if constexpr (!is_last) add_set_and_dots<V, FIRST + N>(mask, h, x, x_stride, weights, grad, parts);
  return n;
}

// The sums of lanes 0 to 3, 4 to 7, ... of four vectors that lie 16 floats apart.
GF_PART Vector sums_of_four(const float* x) {
  const Vector a = load(x), b = load(x + LANES), c = load(x + 2 * LANES), d = load(x + 3 * LANES);
  const Vector ab = low(a, b) + high(a, b), cd = low(c, d) + high(c, d);
  return low_pairs(ab, cd) + high_pairs(ab, cd);
}

// out[i] = the sum of parts[i] [16], for 16 of them.
GF_PART void sums(const float* parts, float* out) {
#if FLOATS == 16
  Vector four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) four[i] = sums_of_four(parts + 4 * LANES * i);
  const Vector x = even_quarters(four[0], four[1]) + odd_quarters(four[0], four[1]);
  const Vector y = even_quarters(four[2], four[3]) + odd_quarters(four[2], four[3]);
  store(out, even_quarters(x, y) + odd_quarters(x, y));
#elif FLOATS == 8
  for (int i = 0; i < LANES; i += 4, parts += 4 * LANES) {
    const __m256 x = sums_of_four(parts), y = sums_of_four(parts + FLOATS);
    const __m128 before = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 after = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    _mm_storeu_ps(out + i, _mm_add_ps(before, after));
  }
#else
  for (int i = 0; i < LANES; i += 4, parts += 4 * LANES)
    store(out + i, (sums_of_four(parts) + sums_of_four(parts + 4)) +
                       (sums_of_four(parts + 8) + sums_of_four(parts + 12)));
#endif
}

// to[i, j] = from[j, i], as many by as many as a register holds.
GF_PART void transpose_block(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  Vector x[FLOATS], y[FLOATS];
#pragma GCC unroll 16
  for (int i = 0; i < FLOATS; ++i) x[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int i = 0; i < FLOATS; i += 4) {  // four lanes at a time
    const Vector a = low(x[i], x[i + 1]), b = high(x[i], x[i + 1]);
    const Vector c = low(x[i + 2], x[i + 3]), d = high(x[i + 2], x[i + 3]);
    y[i] = low_pairs(a, c), y[i + 1] = high_pairs(a, c), y[i + 2] = low_pairs(b, d), y[i + 3] = high_pairs(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#if FLOATS == 16
    const Vector a = even_quarters(y[i], y[4 + i]), b = odd_quarters(y[i], y[4 + i]);
    const Vector c = even_quarters(y[8 + i], y[12 + i]), d = odd_quarters(y[8 + i], y[12 + i]);
    store(to + i * to_stride, even_quarters(a, c));
    store(to + (4 + i) * to_stride, even_quarters(b, d));
    store(to + (8 + i) * to_stride, odd_quarters(a, c));
    store(to + (12 + i) * to_stride, odd_quarters(b, d));
#elif FLOATS == 8
    store(to + i * to_stride, _mm256_permute2f128_ps(y[i], y[4 + i], 0x20));
    store(to + (4 + i) * to_stride, _mm256_permute2f128_ps(y[i], y[4 + i], 0x31));
#else
    store(to + i * to_stride, y[i]);
#endif
  }
}

// The same, 16 by 16.
GF_PART void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  for (int i = 0; i < LANES; i += FLOATS)
    for (int j = 0; j < LANES; j += FLOATS)
      transpose_block(from + j * from_stride + i, from_stride, to + i * to_stride + j, to_stride);
}

// Of 16 units and a tile of rows, unit by unit.
struct alignas(64) Tile {
  float h[LANES * ROWS];     // the hidden layer
  float grad[LANES * ROWS];  // its gradient, zero where a unit is not active
  uint64_t mask[LANES];      // of rows
};

// Fills tile.h and tile.mask from `rows` (a multiple of 16) rows of h.
GF_PART void load_tile(Tile& tile, const float* h, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; r += LANES) transpose(h + r * stride, stride, tile.h + r, ROWS);
  for (int i = 0; i < LANES; ++i) tile.mask[i] = mask_of(tile.h + i * ROWS, rows);
}

// to[r] = the next of `packed` where row r is set, else 0; rows a multiple of 16. Returns where the next ones begin.
GF_PART const float* expand(uint64_t mask, const float* packed, int64_t rows, float* to) {
#if FLOATS == 16
  for (int64_t r = 0; r < rows; r += LANES) {
    const __mmask16 some = __mmask16(mask >> r);
    _mm512_storeu_ps(to + r, _mm512_maskz_expandloadu_ps(some, packed));
    packed += __builtin_popcount(some);
  }
#else
  for (int64_t r = 0; r < rows; ++r) to[r] = 0.f;
  for (; mask; mask &= mask - 1) to[__builtin_ctzll(mask)] = *packed++;
#endif
  return packed;
}

// Fills tile.grad from x [rows, 16 V], the gradient of the products, and adds that of the 16 units' weights [16, 16 V].
template <int V>
GF_TARGET void backward(Tile& tile, int64_t rows, const float* x, int64_t x_stride, const float* weights,
                        float* grad_weights) {
  constexpr int64_t stride = LANES * V;
  constexpr int TOGETHER = 2;  // units, so that few of the 16 sums at a time are of nothing
  alignas(64) float parts[(TOGETHER * ROWS + ROWS) * LANES], dots[TOGETHER * ROWS + LANES];
  for (int i = 0; i < LANES; i += TOGETHER) {
    int64_t n = 0;
    for (int k = i; k < i + TOGETHER; ++k)
      n += add_set_and_dots<V>(tile.mask[k], tile.h + k * ROWS, x, x_stride, weights + k * stride,
                               grad_weights + k * stride, parts + LANES * n);
    for (int64_t at = 0; at < n; at += LANES) sums(parts + LANES * at, dots + at);
    const float* next = dots;
    for (int k = i; k < i + TOGETHER; ++k) next = expand(tile.mask[k], next, rows, tile.grad + k * ROWS);
  }
}

// The gradient of the first layer's weights, of 16 units.
template <int V>
GF_TARGET void first_layer(const Tile& tile, const float* x, float* grad_weights) {
  for (int i = 0; i < LANES; ++i)
    add_set<V>(tile.mask[i], tile.grad + i * ROWS, x, V * LANES, grad_weights + i * V * LANES);
}

// A function for each number of vectors: ADD_PRODUCTS[V - 1].
#define GF_PER_VECTORS(f) {f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>}
constexpr decltype(&add_products<1>) ADD_PRODUCTS[MOST] = GF_PER_VECTORS(add_products);
constexpr decltype(&backward<1>) BACKWARD[MOST] = GF_PER_VECTORS(backward);
constexpr decltype(&first_layer<1>) FIRST_LAYER[MOST] = GF_PER_VECTORS(first_layer);

static void add_any_products(int64_t vectors, const float* h, int64_t rows, int64_t units, const float* weights,
                             float* out, int64_t stride) {
  ADD_PRODUCTS[vectors - 1](h, rows, units, weights, out, stride);
}

GF_TARGET static void backward_tile(int64_t vectors, const float* h, int64_t rows, int64_t units, const float* x,
                                    int64_t stride, const float* weights, float* grad_weights, float* grad) {
  Tile tile;
  for (int64_t j = 0; j < units; j += LANES) {
    const int64_t at = j * vectors * LANES;
    load_tile(tile, h + j, units, rows);
    BACKWARD[vectors - 1](tile, rows, x, stride, weights + at, grad_weights + at);
    for (int64_t r = 0; r < rows; r += LANES) transpose(tile.grad + r, ROWS, grad + r * units + j, units);
  }
}

GF_PART void prefetch(const float* x, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(x + r * stride);
}

// What the next 16 units read is fetched meanwhile: a tile's rows lie too far apart for a processor to guess it.
GF_TARGET static void backward_units(const ActiveBackward& p, int64_t begin, int64_t end) {
  Tile tile;
  for (int64_t row = 0; row < p.rows; row += ROWS) {
    const int64_t rows = std::min<int64_t>(ROWS, p.rows - row), whole = rows / LANES * LANES;
    const float *grad_out = p.grad_out + row * p.n_out, *x = p.x ? p.x + row * p.n_in : nullptr;
    for (int64_t j = begin; j < end; j += LANES) {
      const float* h = p.hidden + row * p.units + j;
      float* grad = p.grad_hidden + row * p.units + j;
      if (j + LANES < end)
        prefetch(h + LANES, p.units, rows);
      else if (row + ROWS < p.rows)
        prefetch(p.hidden + (row + ROWS) * p.units + begin, p.units, std::min<int64_t>(ROWS, p.rows - row - ROWS));
      alignas(64) float rest[LANES * LANES];
      load_tile(tile, h, p.units, whole);
      int64_t padded = whole;
      if (whole < rows) {  // the last rows, with rows of zeros
        std::fill_n(rest, LANES * LANES, 0.f);
        for (int64_t r = whole; r < rows; ++r) std::copy_n(h + r * p.units, LANES, rest + (r - whole) * LANES);
        transpose(rest, LANES, tile.h + whole, ROWS);
        padded += LANES;
        for (int i = 0; i < LANES; ++i) tile.mask[i] = mask_of(tile.h + i * ROWS, padded);
      }
      BACKWARD[p.n_out / LANES - 1](tile, padded, grad_out, p.n_out, p.weights + j * p.n_out,
                                    p.grad_weights + j * p.n_out);
      if (p.x) FIRST_LAYER[p.n_in / LANES - 1](tile, x, p.grad_first + j * p.n_in);
      for (int64_t r = 0; r < whole; r += LANES) transpose(tile.grad + r, ROWS, grad + r * p.units, p.units);
      if (whole < rows) {
        transpose(tile.grad + whole, ROWS, rest, LANES);
        for (int64_t r = whole; r < rows; ++r) std::copy_n(rest + (r - whole) * LANES, LANES, grad + r * p.units);
      }
      if (p.grad_bias)
        for (int i = 0; i < LANES; ++i) {
          float sum = 0.f;
#pragma omp simd reduction(+ : sum)
          for (int64_t r = 0; r < padded; ++r) sum += tile.grad[i * ROWS + r];
          p.grad_bias[j + i] += sum;
        }
    }
  }
}

GF_TARGET static void hidden_row(const float* x, const float* y, const float* bias, float* out, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = activate(x[i] + y[i] + bias[i], Activation::relu);
}

GF_TARGET static float dot(const float* x, const float* y, int64_t n) {
  Vector sum[PER] = {};
  for (int64_t i = 0; i < n; i += LANES)
    for (int k = 0; k < PER; ++k) sum[k] = fma(load(x + i + FLOATS * k), load(y + i + FLOATS * k), sum[k]);
  float lanes[LANES];
  for (int k = 0; k < PER; ++k) store(lanes + FLOATS * k, sum[k]);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[half + i];
  return lanes[0];
}

GF_TARGET static void single_class(float factor, const float* h, const float* weights, float* grad, float* grad_weights,
                                   int64_t units) {
  const Vector times = all(factor);
  for (int64_t i = 0; i < units; i += FLOATS) {
    const Vector own = load(h + i), before = load(grad + i);
    store(grad + i, own != Vector{} ? fma(times, load(weights + i), before) : before);
    store(grad_weights + i, fma(times, own, load(grad_weights + i)));
  }
}

GF_TARGET static void add_to_two(float* sum_x, float* sum_y, const float* grad, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum_x[i] += grad[i], sum_y[i] += grad[i];
}

GF_TARGET static uint64_t mask(const float* x, int64_t n) { return mask_of(x, n); }

GF_TARGET static void turn(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  transpose(from, from_stride, to, to_stride);
}

#define GF_NAME_OF(isa) #isa
#define GF_NAME(isa) GF_NAME_OF(isa)
constexpr Kernels KERNELS = {GF_NAME(GF_ISA), SUMS < MOST ? SUMS : MOST, add_any_products, backward_units, backward_tile,
                             hidden_row, dot, single_class, add_to_two, GF_PER_VECTORS(add_marked), mask, turn};
#undef GF_PER_VECTORS

}  // namespace GF_ISA
}  // namespace active
}  // namespace grokfast

#undef GF_PART
#undef GF_LOADED_ONCE
#undef GF_NAME
#undef GF_NAME_OF
#undef GF_ISA
#undef GF_TARGET
#undef FLOATS
#undef REGISTERS
