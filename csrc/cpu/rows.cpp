// What stands between two matrix products, in one pass over the rows: bias and activation and their backward, bias and
// a residual gathered from a table, layer normalisation, and the sums over rows that are the gradients of biases and
// tables.
#include "activation.h"
#include "segments.h"

namespace grokfast {
namespace {

GF_CLONES void activate_row(float* __restrict z, const float* __restrict bias, int64_t width, Activation activation) {
  GF_PER_ACTIVATION(for (int64_t i = 0; i < width; ++i) z[i] = activate(z[i] + bias[i], kind))
}

GF_CLONES void gelu_row(float* __restrict z, const float* __restrict bias, float* __restrict slopes, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    const float x = z[i] + bias[i];
    z[i] = activate(x, Activation::gelu);
    slopes[i] = slope(x, Activation::gelu);
  }
}

GF_CLONES void relu_backward_row(float* __restrict grad, const float* __restrict out, float* __restrict sum,
                                 int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    const float g = out[i] <= 0.f ? 0.f : grad[i];
    grad[i] = g;
    sum[i] += g;
  }
}

GF_CLONES void gelu_backward_row(float* __restrict grad, const float* __restrict slope, float* __restrict sum,
                                 int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    const float g = grad[i] * slope[i];
    grad[i] = g;
    sum[i] += g;
  }
}

GF_CLONES void add_two_rows(float* __restrict out, const float* __restrict x, const float* __restrict y, int64_t width) {
  for (int64_t i = 0; i < width; ++i) out[i] += x[i] + y[i];
}

GF_CLONES void norm_row(const float* __restrict x, const float* __restrict weight, const float* __restrict bias,
                        float* __restrict out, float* __restrict stats, int64_t width, float eps) {
  float sum = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += x[i];
  const float mean = sum / float(width);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.f / std::sqrt(squares / float(width) + eps);
  for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
  stats[0] = mean;
  stats[1] = factor;
}

// With n = (x - mean) * factor and g = grad * weight: factor * (g - mean(g) - n mean(g n)).
GF_CLONES void norm_backward_row(const float* __restrict x, const float* __restrict weight,
                                 const float* __restrict stats, const float* __restrict grad, float* __restrict grad_x,
                                 float* __restrict sum_weight, float* __restrict sum_bias, int64_t width) {
  const float mean = stats[0], factor = stats[1];
  float sum = 0.f, product = 0.f;
#pragma omp simd reduction(+ : sum, product)
  for (int64_t i = 0; i < width; ++i) {
    const float n = (x[i] - mean) * factor, g = grad[i] * weight[i];
    sum += g;
    product += g * n;
  }
  sum /= float(width);
  product /= float(width);
  for (int64_t i = 0; i < width; ++i) {
    const float n = (x[i] - mean) * factor;
    grad_x[i] = factor * (grad[i] * weight[i] - sum - n * product);
    sum_weight[i] += grad[i] * n;
    sum_bias[i] += grad[i];
  }
}

}  // namespace

void activate_forward(float* z, const float* bias, float* slope, int64_t rows, int64_t width, Activation activation,
                      int threads) {
  const OrZeros offset(bias, width);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t r = 0; r < rows; ++r) {
    if (slope && activation == Activation::gelu)
      gelu_row(z + r * width, offset.at(), slope + r * width, width);
    else
      activate_row(z + r * width, offset.at(), width, activation);
  }
}

void activate_backward(float* grad, const float* kept, float* grad_bias, int64_t rows, int64_t width,
                       Activation activation, int threads) {
  const auto backward_row = activation == Activation::relu ? relu_backward_row : gelu_backward_row;
  std::vector<float> unwanted(grad_bias ? 0 : width);
  sum_all(rows, width, grad_bias ? grad_bias : unwanted.data(), threads, [=](float* sum, int64_t r) {
    backward_row(grad + r * width, kept + r * width, sum, width);
  });
}

void layer_norm_forward(const float* x, const float* weight, const float* bias, float* out, float* stats, int64_t rows,
                        int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t r = 0; r < rows; ++r) norm_row(x + r * width, weight, bias, out + r * width, stats + 2 * r, width, eps);
}

void layer_norm_backward(const float* x, const float* weight, const float* stats, const float* grad, float* grad_x,
                         float* grad_weight, float* grad_bias, int64_t rows, int64_t width, int threads) {
  std::vector<float> sums(2 * width);  // of weight and bias
  sum_all(rows, 2 * width, sums.data(), threads, [=](float* sum, int64_t r) {
    norm_backward_row(x + r * width, weight, stats + 2 * r, grad + r * width, grad_x + r * width, sum, sum + width,
                      width);
  });
  std::copy_n(sums.data(), width, grad_weight);
  std::copy_n(sums.data() + width, width, grad_bias);
}

void add_rows(float* out, const float* table, const int64_t* index, const float* bias, int64_t rows, int64_t width,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const float* skip = table ? table + (index ? index[r] : r) * width : nullptr;
    if (skip && bias)
      add_two_rows(out + r * width, skip, bias, width);
    else
      add_row(out + r * width, skip ? skip : bias, width);
  }
}

void sum_readers(const float* x, const Readers& readers, float* out, int64_t width, int threads) {
  sum_segments(readers, width, out, width, threads,
               [&](float* sum, int64_t row) { add_row(sum, x + row * width, width); });
}

void group_readers(const int64_t* index, int64_t n, int64_t rows, int64_t* start, int64_t* items) {
  for (int64_t k = 0; k <= rows; ++k) start[k] = 0;
  for (int64_t i = 0; i < n; ++i)
    if (index[i] >= 0) ++start[index[i] + 1];
  for (int64_t k = 0; k < rows; ++k) start[k + 1] += start[k];
  std::vector<int64_t> next(start, start + rows);
  for (int64_t i = 0; i < n; ++i)
    if (index[i] >= 0) items[next[index[i]]++] = i;
}

}  // namespace grokfast
