// Losses row by row: softmax cross entropy with a temperature and smoothed labels (Szegedy et al. 2016, arXiv 1512.00567),
// squared error against the one-hot answer, the hinge of classes and of signs, and StableMax (Prieto et al. 2025,
// arXiv 2501.04697). What they are, and which slope a corner has, says grokfast/losses.py.
#include "row_loss.h"

#include <cmath>

#include "classify.h"
#include "vector_math.h"

namespace grokfast {
namespace {

// With z = x / T: log Σ e^z - (1 - s) z[answer] - s mean(z).
GF_CLONES double smoothed_row(const RowLoss& loss, float* __restrict x, int64_t answer, bool wants_gradient,
                              float* __restrict buffer, int64_t classes, float scale) {
  for (int64_t j = 0; j < classes; ++j) x[j] /= loss.temperature;
  float largest = x[0];
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < classes; ++j) largest = x[j] > largest ? x[j] : largest;
  double sum = 0, all = 0;
#pragma omp simd
  for (int64_t j = 0; j < classes; ++j) buffer[j] = exp_nonpositive(x[j] - largest);
#pragma omp simd reduction(+ : sum, all)
  for (int64_t j = 0; j < classes; ++j) sum += buffer[j], all += double(x[j] - largest);
  const double share = loss.smoothing, own = double(x[answer] - largest);
  const double value = std::log(sum) - (1 - share) * own - share * all / double(classes);
  if (wants_gradient) {
    const float inverse = float(1 / sum), everywhere = float(share / double(classes)), factor = scale / loss.temperature;
    const float exact = (buffer[answer] * inverse - 1.f) + (loss.smoothing - everywhere);
    for (int64_t j = 0; j < classes; ++j) x[j] = (buffer[j] * inverse - everywhere) * factor;
    x[answer] = exact * factor;
  }
  return value;
}

GF_CLONES double hinge_row(float* x, int64_t answer, bool wants_gradient, int64_t classes, float scale) {
  const float first = 1.f - x[answer];
  double sum = 0;
  int64_t n = 0;
  for (int64_t j = 0; j < classes; ++j) {
    const float miss = first + x[j];
    const bool counts = !(miss < 0.f) && j != answer;
    sum += counts ? double(miss) : 0.;
    n += counts;
    if (wants_gradient && j != answer) x[j] = counts ? scale : 0.f;
  }
  if (wants_gradient) x[answer] = -scale * float(n);
  return sum;
}

GF_CLONES double stablemax_row(float* x, int64_t answer, bool wants_gradient, int64_t classes, float scale) {
  double sum = 0;
  for (int64_t j = 0; j < classes; ++j) {
    const double z = x[j];
    sum += z < 0 ? 1 / (1 - z) : z + 1;  // keeps NaN
  }
  const double own = x[answer], s = own < 0 ? 1 / (1 - own) : own + 1;
  if (wants_gradient) {
    for (int64_t j = 0; j < classes; ++j) {
      const double z = x[j], slope = z < 0 ? 1 / ((1 - z) * (1 - z)) : 1;
      x[j] = float(slope / sum * scale);
    }
    const double slope = own < 0 ? s * s : 1;
    x[answer] = float((slope / sum - slope / s) * scale);
  }
  return std::log(sum) - std::log(s);
}

double signs_row(float* x, int64_t sign, bool wants_gradient, float scale, bool& right) {
  const float margin = float(sign) * x[0];
  right = margin > 0.f;
  if (wants_gradient) x[0] = margin <= 1.f ? -float(sign) * scale : 0.f;
  return 1.f - margin < 0.f ? 0. : double(1.f - margin);
}

}  // namespace

double row_loss(const RowLoss& loss, float* x, int64_t answer, bool wants_gradient, float* buffer, int64_t outputs,
                float scale, bool& right) {
  if (loss.kind == RowLoss::signs) return signs_row(x, answer, wants_gradient, scale, right);
  const bool is_plain = loss.temperature == 1.f && loss.smoothing == 0.f;
  if (loss.kind == RowLoss::mse || (loss.kind == RowLoss::cross_entropy && is_plain))
    return classify_row(loss.kind == RowLoss::mse ? Loss::mse : Loss::cross_entropy, x, answer,
                        wants_gradient ? x : nullptr, buffer, outputs, scale, right);
  right = row_is_right(x, outputs, answer);
  if (loss.kind == RowLoss::hinge) return hinge_row(x, answer, wants_gradient, outputs, scale);
  if (loss.kind == RowLoss::stablemax) return stablemax_row(x, answer, wants_gradient, outputs, scale);
  return smoothed_row(loss, x, answer, wants_gradient, buffer, outputs, scale);
}

double row_loss_terms(const RowLoss& loss, int64_t n, int64_t outputs) {
  return double(n) * (loss.kind == RowLoss::mse || loss.kind == RowLoss::hinge ? double(outputs) : 1.);
}

}  // namespace grokfast
