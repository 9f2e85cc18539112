// Attention whose queries, keys and values are rows of tables: a row of the output names one query and a few keys. The
// scores, their softmax and the mixture of the values never leave the cache; nothing is copied out of the tables.
// A single query makes the scores a table, too. Backward, the tables' gradients are sums over their readers.
#include "segments.h"
#include "vector_math.h"

namespace grokfast {
namespace {

GF_INLINE float dot(const float* __restrict x, const float* __restrict y, int64_t n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// sum[h, :] += weight[h] * x[h, :]
GF_CLONES void add_weighted(float* __restrict sum, const float* __restrict x, const float* __restrict weight,
                            int64_t heads, int64_t d_head) {
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < d_head; ++i) sum[h * d_head + i] += weight[h] * x[h * d_head + i];
}

GF_CLONES void score_row(const float* __restrict q, const float* __restrict k, float* __restrict scores, int64_t heads,
                         int64_t d_head, float scale) {
  for (int64_t h = 0; h < heads; ++h) scores[h] = scale * dot(q + h * d_head, k + h * d_head, d_head);
}

// The number of keys of a row: -1 ends them.
GF_INLINE int64_t count(const int64_t* keys, int64_t slots) {
  int64_t n = 0;
  while (n < slots && keys[n] >= 0) ++n;
  return n;
}

// scores [n, heads] -> softmax over n, in place.
GF_CLONES void softmax_row(float* __restrict scores, float* __restrict largest, float* __restrict sum, int64_t n,
                           int64_t heads) {
  for (int64_t h = 0; h < heads; ++h) largest[h] = scores[h], sum[h] = 0.f;
  for (int64_t j = 1; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) {
      const float s = scores[j * heads + h];
      largest[h] = s > largest[h] ? s : largest[h];
    }
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) {
      const float w = exp_nonpositive(scores[j * heads + h] - largest[h]);
      scores[j * heads + h] = w;
      sum[h] += w;
    }
  for (int64_t h = 0; h < heads; ++h) sum[h] = 1.f / sum[h];
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) scores[j * heads + h] *= sum[h];
}

// d loss / d weights [n, heads] -> d loss / d scores before scaling, in place.
GF_CLONES void softmax_backward_row(const float* __restrict weights, float* __restrict grad, float* __restrict sum,
                                    int64_t n, int64_t heads, float scale) {
  for (int64_t h = 0; h < heads; ++h) sum[h] = 0.f;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) sum[h] += weights[j * heads + h] * grad[j * heads + h];
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h)
      grad[j * heads + h] = scale * weights[j * heads + h] * (grad[j * heads + h] - sum[h]);
}

}  // namespace

void gathered_attention_forward(const GatheredAttention& a, float* out, float* weights, int threads) {
  const int64_t width = a.heads * a.d_head;
  const float scale = 1.f / std::sqrt(float(a.d_head));
  std::vector<float> table(a.n_queries == 1 ? a.n_keys * a.heads : 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(2 * a.heads);
    if (a.n_queries == 1) {
#pragma omp for schedule(static)
      for (int64_t k = 0; k < a.n_keys; ++k)
        score_row(a.q, a.kv + k * 2 * width, table.data() + k * a.heads, a.heads, a.d_head, scale);
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t *keys = a.keys + r * a.slots, n = count(keys, a.slots);
      const float* q = a.q + (a.query ? a.query[r] : r) * width;
      float *w = weights + r * a.slots * a.heads, *sum = out + r * width;
      for (int64_t j = 0; j < n; ++j) {
        if (a.n_queries == 1)
          for (int64_t h = 0; h < a.heads; ++h) w[j * a.heads + h] = table[keys[j] * a.heads + h];
        else
          score_row(q, a.kv + keys[j] * 2 * width, w + j * a.heads, a.heads, a.d_head, scale);
      }
      softmax_row(w, buffer.data(), buffer.data() + a.heads, n, a.heads);
      for (int64_t i = 0; i < width; ++i) sum[i] = 0.f;
      for (int64_t j = 0; j < n; ++j)
        add_weighted(sum, a.kv + keys[j] * 2 * width + width, w + j * a.heads, a.heads, a.d_head);
    }
  }
}

void gathered_attention_backward(const GatheredAttention& a, const Readers& by_query, const Readers& by_key,
                                 const float* weights, const float* grad_out, float* grad_q, float* grad_kv,
                                 int threads) {
  const int64_t width = a.heads * a.d_head;
  const float scale = 1.f / std::sqrt(float(a.d_head));
  std::vector<float> grad_scores(a.rows * a.slots * a.heads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(a.heads);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t *keys = a.keys + r * a.slots, n = count(keys, a.slots);
      const float *w = weights + r * a.slots * a.heads, *grad = grad_out + r * width;
      float* g = grad_scores.data() + r * a.slots * a.heads;
      for (int64_t j = 0; j < n; ++j)
        score_row(grad, a.kv + keys[j] * 2 * width + width, g + j * a.heads, a.heads, a.d_head, 1.f);
      softmax_backward_row(w, g, buffer.data(), n, a.heads, scale);
    }
  }
  const float* g = grad_scores.data();
  if (a.n_queries == 1) {  // the scores are a table: its gradient first, then that of its two factors
    std::vector<float> sums(a.n_keys * a.heads);
    sum_segments(by_key, a.heads, sums.data(), threads, [&](float* sum, int64_t item) {
      for (int64_t h = 0; h < a.heads; ++h) sum[h] += g[item * a.heads + h];
    });
    sum_segments(by_key, 2 * width, grad_kv, threads, [&](float* sum, int64_t item) {
      add_weighted(sum + width, grad_out + item / a.slots * width, weights + item * a.heads, a.heads, a.d_head);
    });
    for (int64_t i = 0; i < width; ++i) grad_q[i] = 0.f;
    for (int64_t k = 0; k < a.n_keys; ++k) {
      add_weighted(grad_q, a.kv + k * 2 * width, sums.data() + k * a.heads, a.heads, a.d_head);
      add_weighted(grad_kv + k * 2 * width, a.q, sums.data() + k * a.heads, a.heads, a.d_head);
    }
    return;
  }
  sum_segments(by_key, 2 * width, grad_kv, threads, [&](float* sum, int64_t item) {
    const int64_t r = item / a.slots;
    add_weighted(sum, a.q + (a.query ? a.query[r] : r) * width, g + item * a.heads, a.heads, a.d_head);
    add_weighted(sum + width, grad_out + r * width, weights + item * a.heads, a.heads, a.d_head);
  });
  sum_segments(by_query, width, grad_q, threads, [&](float* sum, int64_t r) {
    const int64_t *keys = a.keys + r * a.slots, n = count(keys, a.slots);
    for (int64_t j = 0; j < n; ++j)
      add_weighted(sum, a.kv + keys[j] * 2 * width, g + (r * a.slots + j) * a.heads, a.heads, a.d_head);
  });
}

}  // namespace grokfast
