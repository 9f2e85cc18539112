// What of an update is not element by element: a gradient without its part along the weights, and rows no longer than a
// norm. References: Prieto et al. 2025 (arXiv 2501.04697), "clip to grok" (github.com/NiftyliuS/cliptogrok).
//
// Sums are fp64, of chunks that begin at fixed places of a tensor, and in a fixed order: the same bits on any number of
// threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../grokfast.h"

namespace grokfast {
namespace {

constexpr int64_t kChunk = 16384;  // elements: of weights and gradient 128 KB, which an L2 cache holds
constexpr int kLanes = 16;         // partial sums, so that the order is the same whatever the width of a vector
constexpr double kTiny = 1e-30;

struct Sums {
  double along, weights, grad;  // w·g, w·w, g·g
};

GF_CLONES void add_sums(const float* __restrict w, const float* __restrict g, int64_t n, Sums* out) {
  double along[kLanes] = {}, weights[kLanes] = {}, grad[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const double a = w[i + k], b = g[i + k];
      along[k] += a * b;
      weights[k] += a * a;
      grad[k] += b * b;
    }
  for (int k = 0; i < n; ++i, ++k) {
    const double a = w[i], b = g[i];
    along[k] += a * b;
    weights[k] += a * a;
    grad[k] += b * b;
  }
  *out = {};
  for (int k = 0; k < kLanes; ++k) {
    out->along += along[k];
    out->weights += weights[k];
    out->grad += grad[k];
  }
}

// ĝ = scale (g - along w), as long as g: g⊥ = g - share (w·g)/(w·w + 1e-30) w, ĝ = g⊥ ‖g‖/(‖g⊥‖ + 1e-30).
struct Projection {
  float along, scale;
  float of(float g, float w) const { return scale * (g - along * w); }
};

inline Projection projection(const Sums& s, double share) {
  const double along = share * s.along / (s.weights + kTiny);
  const double left = s.grad - along * (2 * s.along - along * s.weights);  // ‖g⊥‖²
  return {float(along), float(std::sqrt(s.grad) / (std::sqrt(left < 0 ? 0 : left) + kTiny))};
}

GF_CLONES void project_block(const float* __restrict g, const float* __restrict w, float* __restrict out, int64_t n,
                             Projection p) {
  for (int64_t i = 0; i < n; ++i) out[i] = p.of(g[i], w[i]);
}

// w <- w min(1, norm / ‖w‖) of one row.
GF_CLONES void clip_row(float* __restrict w, int64_t n, double norm) {
  double lanes[kLanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] += double(w[i + k]) * w[i + k];
  for (int k = 0; i < n; ++i, ++k) lanes[k] += double(w[i]) * w[i];
  for (int k = 0; k < kLanes; ++k) sum += lanes[k];
  const double factor = norm / std::sqrt(sum);
  if (factor >= 1) return;  // a row of zeros, too; one with a NaN is scaled by it
  const float scale = float(factor);
  for (i = 0; i < n; ++i) w[i] *= scale;
}

// Of the parts in their order.
inline Sums total(const Sums* parts, int64_t n) {
  Sums found{};
  for (int64_t k = 0; k < n; ++k) {
    found.along += parts[k].along;
    found.weights += parts[k].weights;
    found.grad += parts[k].grad;
  }
  return found;
}

inline int64_t n_chunks(const UpdateEntry& t) { return (t.size + kChunk - 1) / kChunk; }

inline void add_chunk(const UpdateEntry& t, int64_t chunk, Sums* out) {
  const int64_t begin = chunk * kChunk;
  add_sums(t.param + begin, t.grad + begin, std::min(kChunk, t.size - begin), out);
}

// By one thread, just before its update, while the cache holds what was read.
inline Sums sums_of(const UpdateEntry& t) {
  std::vector<Sums> parts(n_chunks(t));
  for (int64_t k = 0; k < int64_t(parts.size()); ++k) add_chunk(t, k, &parts[k]);
  return total(parts.data(), parts.size());
}

// The same, by all threads, of a tensor that is not one thread's alone.
inline Sums sums_of(const UpdateEntry& t, int threads) {
  std::vector<Sums> parts(n_chunks(t));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t k = 0; k < int64_t(parts.size()); ++k) add_chunk(t, k, &parts[k]);
  return total(parts.data(), parts.size());
}

}  // namespace
}  // namespace grokfast
