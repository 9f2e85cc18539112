// The first layer of a network that reads two one-hot operands: a gather of two rows, an activation; backward, a
// segment sum. A multiplication by a one-hot matrix costs 2 * n * (rows_a + rows_b) * width operations, this 2 * n * width.
// The backward works the activation's input out again from the tables, so nothing but the indices is kept.
// Every segment is summed by one thread in row order: the same bits for any number of threads and any ensemble.
#include "activation.h"
#include "rows.h"

namespace grokfast {
namespace {

GF_CLONES void forward_row(const float* __restrict x, const float* __restrict y, const float* __restrict bias,
                           float* __restrict out, int64_t width, Activation activation) {
  GF_PER_ACTIVATION(for (int64_t i = 0; i < width; ++i) out[i] = activate(x[i] + y[i] + bias[i], kind))
}

GF_CLONES void backward_row(const float* __restrict x, const float* __restrict y, const float* __restrict bias,
                            const float* __restrict grad, float* __restrict sum, int64_t width, Activation activation) {
  GF_PER_ACTIVATION(for (int64_t i = 0; i < width; ++i) sum[i] += grad[i] * slope(x[i] + y[i] + bias[i], kind))
}

// The rows that read each row of a table.
struct Grouped {
  std::vector<int64_t> start, items;
  Grouped(const int64_t* index, int64_t n, int64_t rows) : start(rows + 1), items(n) {
    group_readers(index, n, rows, start.data(), items.data());
  }
};

}  // namespace

void pair_embed_forward(const PairTables& t, const int64_t* a, const int64_t* b, float* out, int64_t models, int64_t n,
                        Activation activation, int threads) {
  check_pairs(t, a, b, models * n);
  const OrZeros bias(t.bias, t.width);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < models * n; ++i) {
    const int64_t e = i / n;
    forward_row(t.w_a + e * t.stride_a + a[i] * t.width, t.w_b + e * t.stride_b + b[i] * t.width,
                bias.at(e * t.stride_bias), out + i * t.width, t.width, activation);
  }
}

void pair_embed_backward(const PairTables& t, const int64_t* a, const int64_t* b, const float* grad_out, float* grad_a,
                         float* grad_b, float* grad_bias, int64_t models, int64_t n, Activation activation, int threads) {
  check_pairs(t, a, b, models * n);
  const OrZeros biases(t.bias, t.width);
  for (int64_t e = 0; e < models; ++e) {
    const int64_t *own_a = a + e * n, *own_b = b + e * n;
    const Grouped by_a(own_a, n, t.rows_a), by_b(own_b, n, t.rows_b);
    const float *w_a = t.w_a + e * t.stride_a, *w_b = t.w_b + e * t.stride_b;
    const float *grad = grad_out + e * n * t.width, *bias = biases.at(e * t.stride_bias);
    float *sum_a = grad_a + e * t.rows_a * t.width, *sum_b = grad_b + e * t.rows_b * t.width;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1)
    for (int64_t k = 0; k < t.rows_a + t.rows_b; ++k) {
      const bool first = k < t.rows_a;
      const Grouped& readers = first ? by_a : by_b;
      const int64_t row = first ? k : k - t.rows_a;
      float* sum = (first ? sum_a : sum_b) + row * t.width;
      for (int64_t i = 0; i < t.width; ++i) sum[i] = 0.f;
      for (int64_t at = readers.start[row]; at < readers.start[row + 1]; ++at) {
        const int64_t i = readers.items[at];
        backward_row(w_a + own_a[i] * t.width, w_b + own_b[i] * t.width, bias, grad + i * t.width, sum, t.width,
                     activation);
      }
    }
    if (grad_bias) {  // every row of the batch is in exactly one segment of a
      float* sum = grad_bias + e * t.width;
      for (int64_t i = 0; i < t.width; ++i) sum[i] = 0.f;
      for (int64_t k = 0; k < t.rows_a; ++k) add_row(sum, sum_a + k * t.width, t.width);
    }
  }
}

}  // namespace grokfast
