// What stands between a product and the next one in a transformer: bias, the row of the residual stream that is added,
// and LayerNorm; backward also what comes along the stream, and the gradients of bias, weight and offset. A few rows at
// a time while these are in the cache. Sums over rows have one order: the same bits for any number of threads.
#include "segments.h"

namespace grokfast {

void residual_norm_forward(const ResidualNorm& n, float* y, const float* bias, const float* skip, const int64_t* index,
                           float* out, float* stats, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t begin = 0; begin < n.rows; begin += PIECE) {
    const int64_t rows = std::min(PIECE, n.rows - begin), at = begin * n.width;
    if (skip || bias)
      add_rows(y + at, skip && !index ? skip + at : skip, index ? index + begin : nullptr, bias, rows, n.width, 1);
    layer_norm_forward(y + at, n.weight, n.offset, out + at, stats + 2 * begin, rows, n.width, eps, 1);
  }
}

void residual_norm_backward(const ResidualNorm& n, const float* y, const float* stats, const float* grad,
                            const float* along, int64_t first, float* grad_y, float* grad_weight, float* grad_offset,
                            float* grad_bias, int threads) {
  const int64_t width = n.width, pieces = (n.rows + PIECE - 1) / PIECE;
  std::vector<float> sums(pieces * 3 * width);  // of weight, offset and bias
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t begin = p * PIECE, end = std::min(begin + PIECE, n.rows), at = begin * width;
    float* own = sums.data() + p * 3 * width;
    layer_norm_backward(y + at, n.weight, stats + 2 * begin, grad + at, grad_y + at, own, own + width, end - begin,
                        width, 1);
    for (int64_t r = begin; r < end; ++r) {
      if (along && r >= first) add_row(grad_y + r * width, along + (r - first) * width, width);
      if (grad_bias) add_row(own + 2 * width, grad_y + r * width, width);
    }
  }
  float* const to[] = {grad_weight, grad_offset, grad_bias};
  for (int i = 0; i < (grad_bias ? 3 : 2); ++i) {
    std::fill_n(to[i], width, 0.f);
    for (int64_t p = 0; p < pieces; ++p) add_row(to[i], sums.data() + (3 * p + i) * width, width);
  }
}

}  // namespace grokfast
