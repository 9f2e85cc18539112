// The products of an MLP with its hidden layer, and their gradients, only where a unit is active: active.h. Every sum has
// one order: the same bits for any number of threads.
#include "active.h"

namespace grokfast {

#if GF_ACTIVE
namespace {

using namespace active;

constexpr int64_t FORWARD_ROWS = 32;  // of a tile

GF_AVX512 void prefetch(const float* x, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(x + r * stride);
}

// The gradient of the first layer's weights, of 16 units.
template <int V>
GF_AVX512 void first_layer(const Tile& tile, const float* x, float* grad_weights) {
  for (int i = 0; i < LANES; ++i)
    add_gradient<V>(tile.mask[i], tile.grad + i * ROWS, x, V * LANES, grad_weights + i * V * LANES);
}

constexpr decltype(&first_layer<1>) FIRST_LAYER[MOST] = GF_PER_VECTORS(first_layer);

bool fits(int64_t width) { return width > 0 && width % LANES == 0 && width / LANES <= MOST; }

// All that comes back through the units from begin to end, 16 at a time for a tile of rows. What the next 16 read is
// fetched meanwhile: a tile's rows lie too far apart for a processor to guess it.
GF_AVX512 void backward_units(const ActiveBackward& p, int64_t begin, int64_t end) {
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
      load(tile, h, p.units, whole);
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

}  // namespace

bool active_products_work() {
  static const bool works = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512cd");
  return works;
}

bool active_products_fit(int64_t width, int64_t units) {
  return active_products_work() && fits(width) && units > 0 && units % LANES == 0;
}

void active_forward(const float* hidden, const float* weights, const float* bias, const float* skip, float* out,
                    int64_t rows, int64_t units, int64_t width, int threads) {
  if (!active_products_fit(width, units)) throw std::invalid_argument("active_forward takes no such width or units");
  const OrZeros first(bias, width);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t begin = 0; begin < rows; begin += FORWARD_ROWS) {
    const int64_t n = std::min(FORWARD_ROWS, rows - begin);
    float* own = out + begin * width;
    for (int64_t r = 0; r < n; ++r) {
      std::copy_n(first.at(), width, own + r * width);
      if (skip) add_row(own + r * width, skip + (begin + r) * width, width);
    }
    ADD_PRODUCTS[width / LANES - 1](hidden + begin * units, n, units, weights, own, width);
  }
}

void active_backward(const ActiveBackward& p, int threads) {
  if (!active_products_fit(p.n_out, p.units) || (p.x && !active_products_fit(p.n_in, p.units)))
    throw std::invalid_argument("active_backward takes no such width or units");
  std::fill_n(p.grad_weights, p.units * p.n_out, 0.f);
  if (p.x) std::fill_n(p.grad_first, p.units * p.n_in, 0.f);
  if (p.grad_bias) std::fill_n(p.grad_bias, p.units, 0.f);
  const int64_t groups = p.units / LANES, teams = std::min<int64_t>(threads, groups);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t i = 0; i < teams; ++i)
    backward_units(p, groups * i / teams * LANES, groups * (i + 1) / teams * LANES);
}

#else

bool active_products_work() { return false; }
bool active_products_fit(int64_t, int64_t) { return false; }
void active_forward(const float*, const float*, const float*, const float*, float*, int64_t, int64_t, int64_t, int) {
  throw std::invalid_argument("active_forward takes no such processor");
}
void active_backward(const ActiveBackward&, int) {
  throw std::invalid_argument("active_backward takes no such processor");
}

#endif

}  // namespace grokfast
