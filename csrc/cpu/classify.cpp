// Loss, accuracy and the gradient of the logits in one pass over each row: softmax cross entropy, or mean squared error
// against the one-hot answer (torch's `mean`: over rows and classes). A row is right when the answer has the first of
// the largest logits. Sums are in double, those of rows in row order: the same bits for any number of threads.
#include "classify.h"

#include <vector>

#include "vector_math.h"

namespace grokfast {
namespace {

GF_CLONES bool answer_is_first_largest(const float* __restrict x, int64_t classes, int64_t answer) {
  const float own = x[answer];
  int ahead = 0;
#pragma omp simd reduction(+ : ahead)
  for (int64_t j = 0; j < answer; ++j) ahead += !(x[j] < own);
#pragma omp simd reduction(+ : ahead)
  for (int64_t j = answer + 1; j < classes; ++j) ahead += !(x[j] <= own);
  return ahead == 0;
}

GF_CLONES double cross_entropy_row(const float* x, int64_t answer, float* grad, float* __restrict buffer,
                                   int64_t classes, float scale) {
  float largest = x[0];
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < classes; ++j) largest = x[j] > largest ? x[j] : largest;
  for (int64_t j = 0; j < classes; ++j) buffer[j] = exp_nonpositive(x[j] - largest);
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < classes; ++j) sum += buffer[j];
  const double loss = std::log(sum) - double(x[answer] - largest);
  if (grad) {
    const float inverse = float(1 / sum);
    for (int64_t j = 0; j < classes; ++j) grad[j] = buffer[j] * inverse * scale;
    grad[answer] = (buffer[answer] * inverse - 1.f) * scale;
  }
  return loss;
}

GF_CLONES double mse_row(const float* x, int64_t answer, float* grad, int64_t classes, float scale) {
  const float miss = x[answer] - 1.f;
  double sum = miss * miss;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < answer; ++j) sum += x[j] * x[j];
#pragma omp simd reduction(+ : sum)
  for (int64_t j = answer + 1; j < classes; ++j) sum += x[j] * x[j];
  if (grad) {
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) grad[j] = 2.f * scale * x[j];
    grad[answer] = 2.f * scale * miss;
  }
  return sum;
}

}  // namespace

bool row_is_right(const float* x, int64_t classes, int64_t answer) { return answer_is_first_largest(x, classes, answer); }

double classify_row(Loss loss, const float* x, int64_t answer, float* grad, float* buffer, int64_t classes, float scale,
                    bool& right) {
  right = answer_is_first_largest(x, classes, answer);
  return loss == Loss::mse ? mse_row(x, answer, grad, classes, scale)
                           : cross_entropy_row(x, answer, grad, buffer, classes, scale);
}

double classify_terms(Loss loss, int64_t of, int64_t classes) {
  return double(of) * (loss == Loss::mse ? double(classes) : 1.);
}

void classify(Loss loss, const float* logits, const int64_t* target, float* grad_logits, float* loss_out,
              float* accuracy_out, int64_t models, int64_t n, int64_t of, int64_t classes, int64_t stride,
              int threads) {
  check_indices("target", target, models * n, classes);
  std::vector<double> row_loss(models * n);
  std::vector<char> row_right(models * n);
  const double terms = classify_terms(loss, of, classes);
  const float scale = float(1. / terms);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(classes);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < models * n; ++i) {
      const float* x = logits + i * stride;
      float* grad = grad_logits ? grad_logits + i * stride : nullptr;
      bool right;
      row_loss[i] = classify_row(loss, x, target[i], grad, buffer.data(), classes, scale, right);
      row_right[i] = right;
    }
  }
  for (int64_t e = 0; e < models; ++e) {
    double sum = 0;
    int64_t right = 0;
    for (int64_t i = e * n; i < (e + 1) * n; ++i) sum += row_loss[i], right += row_right[i];
    loss_out[e] = float(sum / terms);
    accuracy_out[e] = float(double(right) / double(of));
  }
}

}  // namespace grokfast
