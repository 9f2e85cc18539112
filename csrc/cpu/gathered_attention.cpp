// Attention whose queries, keys and values are rows of tables: a row of the output names one query and a few keys. The
// scores, their softmax and the mixture of the values never leave the cache; nothing is copied out of the tables.
// A single query makes the scores a table, too. Backward, the tables' gradients are sums over their readers.
#include "segments.h"
#include "vector_math.h"

namespace grokfast {
namespace {

// The same loop for the usual sizes of a head, so that the compiler unrolls it, and for any other.
#define GF_PER_HEAD_SIZE(call)                             \
  switch (d_head) {                                        \
    case 16: { constexpr int64_t size = 16; call; } break; \
    case 32: { constexpr int64_t size = 32; call; } break; \
    case 64: { constexpr int64_t size = 64; call; } break; \
    default: { const int64_t size = d_head; call; }        \
  }

GF_INLINE void add_weighted_heads(float* __restrict sum, const float* __restrict x, const float* __restrict weight,
                                  int64_t heads, int64_t d_head) {
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < d_head; ++i) sum[h * d_head + i] += weight[h] * x[h * d_head + i];
}

GF_INLINE void score_heads(const float* __restrict q, const float* __restrict k, float* __restrict scores,
                           int64_t heads, int64_t d_head, float scale) {
  for (int64_t h = 0; h < heads; ++h) {
    float sum = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d_head; ++i) sum += q[h * d_head + i] * k[h * d_head + i];
    scores[h] = scale * sum;
  }
}

// sum[h, :] += weight[h] * x[h, :]
GF_CLONES void add_weighted(float* __restrict sum, const float* __restrict x, const float* __restrict weight,
                            int64_t heads, int64_t d_head) {
  GF_PER_HEAD_SIZE(add_weighted_heads(sum, x, weight, heads, size))
}

// scores[h] = scale * q[h, :] k[h, :]
GF_CLONES void score(const float* __restrict q, const float* __restrict k, float* __restrict scores, int64_t heads,
                     int64_t d_head, float scale) {
  GF_PER_HEAD_SIZE(score_heads(q, k, scores, heads, size, scale))
}

// The number of keys of a row: -1 ends them.
GF_INLINE int64_t count(const int64_t* keys, int64_t slots) {
  int64_t n = 0;
  while (n < slots && keys[n] >= 0) ++n;
  return n;
}

// scores [n, heads] -> softmax over n, in place; buffer has room for 2 heads.
GF_INLINE void softmax(float* __restrict scores, float* __restrict buffer, int64_t n, int64_t heads) {
  float *largest = buffer, *sum = buffer + heads;
  for (int64_t h = 0; h < heads; ++h) largest[h] = scores[h], sum[h] = 0.f;
  for (int64_t j = 1; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) {
      const float s = scores[j * heads + h];
      largest[h] = s > largest[h] ? s : largest[h];
    }
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) scores[j * heads + h] -= largest[h];
  for (int64_t i = 0; i < n * heads; ++i) scores[i] = exp_nonpositive(scores[i]);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) sum[h] += scores[j * heads + h];
  for (int64_t h = 0; h < heads; ++h) sum[h] = 1.f / sum[h];
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) scores[j * heads + h] *= sum[h];
}

GF_INLINE void forward_rows(const GatheredAttention& a, int64_t begin, int64_t end, const float* table, float* buffer,
                            float* out, float* weights, int64_t d_head) {
  const int64_t heads = a.heads, width = heads * d_head;
  const float scale = 1.f / std::sqrt(float(d_head));
  for (int64_t r = begin; r < end; ++r) {
    const int64_t *keys = a.keys + r * a.slots, n = count(keys, a.slots);
    const float* q = a.q + (a.query ? a.query[r] : r) * a.stride_q;
    float *w = weights + r * a.slots * heads, *sum = out + r * width;
    for (int64_t j = 0; j < n; ++j) {
      if (table)
        for (int64_t h = 0; h < heads; ++h) w[j * heads + h] = table[keys[j] * heads + h];
      else
        score_heads(q, a.kv + keys[j] * a.stride_kv, w + j * heads, heads, d_head, scale);
    }
    softmax(w, buffer, n, heads);
    for (int64_t i = 0; i < width; ++i) sum[i] = 0.f;
    for (int64_t j = 0; j < n; ++j)
      add_weighted_heads(sum, a.kv + keys[j] * a.stride_kv + width, w + j * heads, heads, d_head);
  }
}

GF_CLONES void forward_block(const GatheredAttention& a, int64_t begin, int64_t end, const float* table, float* buffer,
                             float* out, float* weights) {
  const int64_t d_head = a.d_head;
  GF_PER_HEAD_SIZE(forward_rows(a, begin, end, table, buffer, out, weights, size))
}

// d loss / d scores before scaling, from d loss / d out.
GF_INLINE void score_grad_rows(const GatheredAttention& a, int64_t begin, int64_t end, const float* weights,
                               const float* grad_out, float* buffer, float* grad_scores, int64_t d_head) {
  const int64_t heads = a.heads, width = heads * d_head;
  const float scale = 1.f / std::sqrt(float(d_head));
  for (int64_t r = begin; r < end; ++r) {
    const int64_t *keys = a.keys + r * a.slots, n = count(keys, a.slots);
    const float *__restrict w = weights + r * a.slots * heads, *grad = grad_out + r * width;
    float *__restrict g = grad_scores + r * a.slots * heads, *__restrict sum = buffer;
    for (int64_t j = 0; j < n; ++j)
      score_heads(grad, a.kv + keys[j] * a.stride_kv + width, g + j * heads, heads, d_head, 1.f);
    for (int64_t h = 0; h < heads; ++h) sum[h] = 0.f;
    for (int64_t j = 0; j < n; ++j)
      for (int64_t h = 0; h < heads; ++h) sum[h] += w[j * heads + h] * g[j * heads + h];
    for (int64_t j = 0; j < n; ++j)
      for (int64_t h = 0; h < heads; ++h)
        g[j * heads + h] = scale * w[j * heads + h] * (g[j * heads + h] - sum[h]);
  }
}

GF_CLONES void score_grad_block(const GatheredAttention& a, int64_t begin, int64_t end, const float* weights,
                                const float* grad_out, float* buffer, float* grad_scores) {
  const int64_t d_head = a.d_head;
  GF_PER_HEAD_SIZE(score_grad_rows(a, begin, end, weights, grad_out, buffer, grad_scores, size))
}

constexpr int64_t BLOCK = 64;  // rows that one thread takes at a time

}  // namespace

void gathered_attention_forward(const GatheredAttention& a, float* out, float* weights, int threads) {
  std::vector<float> table(a.n_queries == 1 ? a.n_keys * a.heads : 0);
  if (a.n_queries == 1)
    for (int64_t k = 0; k < a.n_keys; ++k)
      score(a.q, a.kv + k * a.stride_kv, table.data() + k * a.heads, a.heads, a.d_head,
            1.f / std::sqrt(float(a.d_head)));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(2 * a.heads);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < a.rows; begin += BLOCK)
      forward_block(a, begin, begin + BLOCK < a.rows ? begin + BLOCK : a.rows,
                    a.n_queries == 1 ? table.data() : nullptr, buffer.data(), out, weights);
  }
}

void gathered_attention_backward(const GatheredAttention& a, const Readers& by_query, const Readers& by_key,
                                 const float* weights, const float* grad_out, float* grad_q, float* grad_kv,
                                 int threads) {
  const int64_t width = a.heads * a.d_head;
  std::vector<float> grad_scores(a.rows * a.slots * a.heads);
  float* g = grad_scores.data();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(a.heads);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < a.rows; begin += BLOCK)
      score_grad_block(a, begin, begin + BLOCK < a.rows ? begin + BLOCK : a.rows, weights, grad_out, buffer.data(), g);
  }
  if (a.n_queries == 1) {  // the scores are a table: its gradient first, then that of its two factors
    std::vector<float> sums(a.n_keys * a.heads);
    sum_segments(by_key, a.heads, sums.data(), a.heads, 1, [&](float* sum, int64_t item) {
      for (int64_t h = 0; h < a.heads; ++h) sum[h] += g[item * a.heads + h];
    });
    sum_segments(by_key, 2 * width, grad_kv, a.stride_kv, threads, [&](float* sum, int64_t item) {
      add_weighted(sum + width, grad_out + item / a.slots * width, weights + item * a.heads, a.heads, a.d_head);
    });
    for (int64_t i = 0; i < width; ++i) grad_q[i] = 0.f;
    for (int64_t k = 0; k < a.n_keys; ++k) {
      add_weighted(grad_q, a.kv + k * a.stride_kv, sums.data() + k * a.heads, a.heads, a.d_head);
      add_weighted(grad_kv + k * a.stride_kv, a.q, sums.data() + k * a.heads, a.heads, a.d_head);
    }
    return;
  }
  sum_segments(by_key, 2 * width, grad_kv, a.stride_kv, threads, [&](float* sum, int64_t item) {
    const int64_t r = item / a.slots;
    add_weighted(sum, a.q + (a.query ? a.query[r] : r) * a.stride_q, g + item * a.heads, a.heads, a.d_head);
    add_weighted(sum + width, grad_out + r * width, weights + item * a.heads, a.heads, a.d_head);
  });
  sum_segments(by_query, width, grad_q, a.stride_q, threads, [&](float* sum, int64_t r) {
    const int64_t *keys = a.keys + r * a.slots, n = count(keys, a.slots);
    for (int64_t j = 0; j < n; ++j)
      add_weighted(sum, a.kv + keys[j] * a.stride_kv, g + (r * a.slots + j) * a.heads, a.heads, a.d_head);
  });
}

}  // namespace grokfast
