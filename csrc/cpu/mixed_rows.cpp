// Rows mixed of tables' rows by attention: the forward and backward pass of what is linear in a one-layer transformer
// without LayerNorm, whose tables go straight to the units of its MLP and to its logits. Columns are taken 64 at a time,
// for many rows: so many of every table stay in the second cache, where folded rows go on from units to logits and come
// back, and each thread sums what nobody else does. Every sum has one order: the same bits for any number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "active.h"
#include "vector_math.h"

namespace grokfast {
namespace {

constexpr int LANES = 16, VECTORS = 4;
constexpr int64_t BLOCK = LANES * VECTORS;  // columns
constexpr int64_t PIECE = 64;               // rows whose base is summed by itself: a sum of sums rounds less
constexpr int64_t CHUNK = 256;              // rows, or readers, that a thread takes at a time

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));  // what the processor lacks is split up

// The lanes of x and then y that are numbered.
#if defined(__clang__)
#define GF_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else  // that GCC has from 12 on only
typedef int Places __attribute__((vector_size(4 * LANES)));
#define GF_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Places{__VA_ARGS__})
#endif

GF_INLINE Lanes load(const float* x) {
  Lanes lanes;
  std::memcpy(&lanes, x, sizeof(Lanes));
  return lanes;
}

GF_INLINE void store(float* x, Lanes lanes) { std::memcpy(x, &lanes, sizeof(Lanes)); }

// Columns [at, at + n) of tables and base, which begin at out + of_out, where rows are `stride` floats apart.
struct Columns {
  int64_t at, n, of_out, stride;
  bool is_hidden;
};

// Blocked units: all rows of 64 of them, then of the next 64.
std::vector<Columns> columns_of(const MixedRows& m, bool is_blocked = false) {
  std::vector<Columns> found;
  for (int64_t at = 0; at < m.units; at += BLOCK) {
    const int64_t n = std::min(BLOCK, m.units - at);
    found.push_back({at, n, is_blocked ? at * m.rows : at, is_blocked ? n : m.units, true});
  }
  for (int64_t at = m.units; at < m.width; at += BLOCK)
    found.push_back({at, std::min(BLOCK, m.width - at), at - m.units, m.width - m.units, false});
  return found;
}

GF_INLINE int64_t query_of(const MixedRows& m, int64_t r) { return m.query ? m.query[r] : 0; }

// w of rows [begin, end); buffer holds 3 heads.
GF_CLONES void attend(const MixedRows& m, int64_t begin, int64_t end, float* weights, float* buffer) {
  const int64_t heads = m.heads, slots = m.slots;
  float *largest = buffer, *total = buffer + heads, *common = buffer + 2 * heads;
  for (int64_t r = begin; r < end; ++r) {
    const float* scores = m.scores + query_of(m, r) * m.n_keys * heads;
    float* w = weights + r * slots * heads;
    for (int64_t h = 0; h < heads; ++h) largest[h] = -INFINITY;
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t h = 0; h < heads; ++h) {
        const float x = w[s * heads + h] = scores[m.keys[r * slots + s] * heads + h];
        largest[h] = largest[h] < x ? x : largest[h];
      }
    if (m.common >= 0)
      for (int64_t h = 0; h < heads; ++h) {
        common[h] = scores[m.common * heads + h];
        largest[h] = largest[h] < common[h] ? common[h] : largest[h];
      }
    for (int64_t h = 0; h < heads; ++h) total[h] = m.common >= 0 ? exp_nonpositive(common[h] - largest[h]) : 0.f;
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t h = 0; h < heads; ++h) {
        const float x = w[s * heads + h] = exp_nonpositive(w[s * heads + h] - largest[h]);
        total[h] += x;
      }
    for (int64_t h = 0; h < heads; ++h) total[h] = 1.f / total[h];
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t h = 0; h < heads; ++h) w[s * heads + h] *= total[h];
  }
}

GF_INLINE void mix_whole(const MixedRows& m, const Columns& c, int64_t begin, int64_t end, const float* weights,
                         float* out) {
  const float rest = 1.f - m.rate;
  for (int64_t r = begin; r < end; ++r) {
    const float *base = m.base + query_of(m, r) * m.width + c.at, *w = weights + r * m.slots * m.heads;
    Lanes x[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) x[v] = load(base + LANES * v);
    for (int64_t s = 0; s < m.slots; ++s) {
      const float* row = m.tables + m.keys[r * m.slots + s] * m.width + c.at;
      for (int64_t h = 0; h < m.heads; ++h, row += m.n_keys * m.width) {
        const float share = m.rate * w[s * m.heads + h] + rest;
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) x[v] += share * load(row + LANES * v);
      }
    }
    float* to = out + r * c.stride + c.of_out;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      if (c.is_hidden) x[v] = x[v] < 0.f ? Lanes{} : x[v];  // keeps NaN
      store(to + LANES * v, x[v]);
    }
  }
}

GF_INLINE void mix_some(const MixedRows& m, const Columns& c, int64_t begin, int64_t end, const float* weights,
                        float* out) {
  const float rest = 1.f - m.rate;
  for (int64_t r = begin; r < end; ++r) {
    const float *base = m.base + query_of(m, r) * m.width + c.at, *w = weights + r * m.slots * m.heads;
    float* to = out + r * c.stride + c.of_out;
    for (int64_t i = 0; i < c.n; ++i) to[i] = base[i];
    for (int64_t s = 0; s < m.slots; ++s) {
      const float* row = m.tables + m.keys[r * m.slots + s] * m.width + c.at;
      for (int64_t h = 0; h < m.heads; ++h, row += m.n_keys * m.width) {
        const float share = m.rate * w[s * m.heads + h] + rest;
        for (int64_t i = 0; i < c.n; ++i) to[i] += share * row[i];
      }
    }
    if (c.is_hidden)
      for (int64_t i = 0; i < c.n; ++i) to[i] = to[i] < 0.f ? 0.f : to[i];  // keeps NaN
  }
}

GF_CLONES void mix(const MixedRows& m, const Columns& c, int64_t begin, int64_t end, const float* weights, float* out) {
  if (c.n == BLOCK)
    mix_whole(m, c, begin, end, weights, out);
  else
    mix_some(m, c, begin, end, weights, out);
}

// What sums up each of 16 vectors.
GF_INLINE Lanes sums(const Lanes* x) {
  Lanes two[8], four[4];  // sums of pairs, then of four, interleaved
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    two[i] = GF_SHUFFLE(x[2 * i], x[2 * i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
             GF_SHUFFLE(x[2 * i], x[2 * i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    four[i] =
        GF_SHUFFLE(two[2 * i], two[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
        GF_SHUFFLE(two[2 * i], two[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  Lanes half[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    half[i] = GF_SHUFFLE(four[2 * i], four[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26,
                                      27) +
              GF_SHUFFLE(four[2 * i], four[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29,
                                      30, 31);
  return GF_SHUFFLE(half[0], half[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         GF_SHUFFLE(half[0], half[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// Of heads [first, first + HEADS) of 64 columns: the tables' gradients, and dots [n, HEADS] of gradients and tables' rows
// in the order of the readers. A key's row of each head is summed in registers over who reads it.
template <int HEADS>
GF_INLINE void back_heads(const MixedRows& m, const Readers& readers, const Columns& c, int64_t first,
                          const float* weights, const float* grad, float* grad_tables, float* dots) {
  const float rest = 1.f - m.rate;
  Lanes parts[LANES + HEADS];
  int n_parts = 0;
  for (int64_t k = 0; k < m.n_keys; ++k) {
    const float* rows[HEADS];
    Lanes own[HEADS][VECTORS];
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      rows[h] = m.tables + ((first + h) * m.n_keys + k) * m.width + c.at;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) own[h][v] = Lanes{};
    }
    for (int64_t at = readers.start[k]; at < readers.start[k + 1]; ++at) {
      const int64_t item = readers.items[at];
      const float *g = grad + item / m.slots * c.stride + c.of_out, *w = weights + item * m.heads + first;
      Lanes x[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) x[v] = load(g + LANES * v);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h) {
        const float share = m.rate * w[h] + rest;
        Lanes dot = x[0] * load(rows[h]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
          if (v) dot += x[v] * load(rows[h] + LANES * v);
          own[h][v] += share * x[v];
        }
        parts[n_parts + h] = dot;
      }
      n_parts += HEADS;
      if (n_parts >= LANES) {
        store(dots, sums(parts));
        dots += LANES;
        n_parts -= LANES;
        for (int i = 0; i < n_parts; ++i) parts[i] = parts[LANES + i];
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v)
        store(grad_tables + ((first + h) * m.n_keys + k) * m.width + c.at + LANES * v, own[h][v]);
  }
  for (int i = n_parts; i < LANES; ++i) parts[i] = Lanes{};
  store(dots, sums(parts));
}

// The same for any number of columns.
GF_INLINE void back_head(const MixedRows& m, const Readers& readers, const Columns& c, int64_t head,
                         const float* weights, const float* grad, float* grad_tables, float* dots) {
  for (int64_t k = 0; k < m.n_keys; ++k) {
    const int64_t place = (head * m.n_keys + k) * m.width + c.at;
    const float* row = m.tables + place;
    float* own = grad_tables + place;
    for (int64_t i = 0; i < c.n; ++i) own[i] = 0.f;
    for (int64_t at = readers.start[k]; at < readers.start[k + 1]; ++at) {
      const int64_t item = readers.items[at];
      const float* g = grad + item / m.slots * c.stride + c.of_out;
      const float share = m.rate * weights[item * m.heads + head] + (1.f - m.rate);
      float dot = 0.f;
      for (int64_t i = 0; i < c.n; ++i) {
        dot += g[i] * row[i];
        own[i] += share * g[i];
      }
      *dots++ = dot;
    }
  }
}

constexpr int64_t TOGETHER = 4;  // heads

// Heads are taken 4, or one, at a time; where the dots of `first` begin: each such group has room for whole vectors.
int64_t heads_at_a_time(const MixedRows& m, const Columns& c, int64_t first) {
  return c.n == BLOCK && first + TOGETHER <= m.heads ? TOGETHER : 1;
}
int64_t room(const MixedRows& m, int64_t heads) { return (m.rows * m.slots * heads / LANES + 1) * LANES; }
int64_t room_of_all(const MixedRows& m) { return m.heads * room(m, 1); }

GF_CLONES void back(const MixedRows& m, const Readers& readers, const Columns& c, const float* weights,
                    const float* grad, float* grad_tables, float* grad_base, float* dots, float* piece) {
  for (int64_t first = 0, heads = 0; first < m.heads; first += heads) {
    heads = heads_at_a_time(m, c, first);
    float* own = dots + first * room(m, 1);
    if (heads == TOGETHER)
      back_heads<TOGETHER>(m, readers, c, first, weights, grad, grad_tables, own);
    else if (c.n == BLOCK)
      back_heads<1>(m, readers, c, first, weights, grad, grad_tables, own);
    else
      back_head(m, readers, c, first, weights, grad, grad_tables, own);
  }
  for (int64_t q = 0; q < m.n_queries; ++q) std::fill_n(grad_base + q * m.width + c.at, c.n, 0.f);
  for (int64_t r = 0; r < m.rows; ++r) {
    const float* g = grad + r * c.stride + c.of_out;
    float* base = piece + query_of(m, r) * BLOCK;
    for (int64_t i = 0; i < c.n; ++i) base[i] += g[i];
    if (r % PIECE == PIECE - 1 || r == m.rows - 1)
      for (int64_t q = 0; q < m.n_queries; ++q)
        for (int64_t i = 0; i < c.n; ++i) {
          grad_base[q * m.width + c.at + i] += piece[q * BLOCK + i];
          piece[q * BLOCK + i] = 0.f;
        }
  }
}

// The gradient of w, [rows, slots, heads], of the dots of all columns.
void gather_dots(const MixedRows& m, const Readers& readers, const std::vector<Columns>& columns, const float* dots,
                 float* grad_weights, int threads) {
  const int64_t n = m.rows * m.slots;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t begin = 0; begin < n; begin += CHUNK) {
    const int64_t end = std::min(n, begin + CHUNK);
    const float* of_columns = dots;
    for (int64_t at = begin; at < end; ++at) std::fill_n(grad_weights + readers.items[at] * m.heads, m.heads, 0.f);
    for (const Columns& c : columns) {
      for (int64_t first = 0, heads = 0; first < m.heads; first += heads) {
        heads = heads_at_a_time(m, c, first);
        const float* own = of_columns + first * room(m, 1);
        for (int64_t at = begin; at < end; ++at)
          for (int64_t h = 0; h < heads; ++h)
            grad_weights[readers.items[at] * m.heads + first + h] += own[at * heads + h];
      }
      of_columns += room_of_all(m);
    }
  }
}

// The gradient of the scores from that of w, through the softmax.
void back_scores(const MixedRows& m, const float* weights, const float* grad_weights, float* grad_scores) {
  const int64_t heads = m.heads, slots = m.slots, own = slots * heads;
  std::fill_n(grad_scores, m.n_queries * m.n_keys * heads, 0.f);
  std::vector<float> mean(heads);
  for (int64_t r = 0; r < m.rows; ++r) {
    const float *w = weights + r * own, *g = grad_weights + r * own;
    for (int64_t h = 0; h < heads; ++h) mean[h] = 0.f;
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t h = 0; h < heads; ++h) mean[h] += w[s * heads + h] * g[s * heads + h];
    float* to = grad_scores + query_of(m, r) * m.n_keys * heads;
    for (int64_t s = 0; s < slots; ++s)
      for (int64_t h = 0; h < heads; ++h)
        to[m.keys[r * slots + s] * heads + h] += m.rate * w[s * heads + h] * (g[s * heads + h] - mean[h]);
    if (m.common >= 0)
      for (int64_t h = 0; h < heads; ++h) {
        float rest = 1.f;
        for (int64_t s = 0; s < slots; ++s) rest -= w[s * heads + h];
        to[m.common * heads + h] -= m.rate * rest * mean[h];
      }
  }
}

void check_folded(const MixedRows& m) {
  if (!active_products_fit(m.width - m.units, m.units))
    throw std::invalid_argument("no such number of units or classes is folded");
}

}  // namespace

void mixed_rows_forward(const MixedRows& m, float* hidden, float* linear, float* weights, int threads,
                        const float* to_logits) {
  if (to_logits) check_folded(m);
  const std::vector<Columns> columns = columns_of(m, to_logits != nullptr);
  const int64_t classes = m.width - m.units, teams = std::max(threads, 1);
  const int64_t chunks = std::max<int64_t>(1, (m.rows + CHUNK * teams - 1) / (CHUNK * teams)) * teams;
  const active::Kernels& with = active::kernels();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(3 * m.heads);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t begin = m.rows * i / chunks, end = m.rows * (i + 1) / chunks;
      attend(m, begin, end, weights, buffer.data());
      for (const Columns& c : columns)  // what is linear first: logits are added to it
        if (!c.is_hidden) mix(m, c, begin, end, weights, linear);
      for (const Columns& c : columns) {
        if (!c.is_hidden) continue;
        mix(m, c, begin, end, weights, hidden);
        if (to_logits)
          with.add_products(classes / LANES, hidden + c.of_out + begin * c.n, end - begin, c.n,
                            to_logits + c.at * classes, linear + begin * classes, classes);
      }
    }
  }
}

void mixed_rows_backward(const MixedRows& m, const Readers& readers, const float* weights, const float* grad_hidden,
                         const float* grad_linear, float* grad_tables, float* grad_scores, float* grad_base,
                         int threads, const FoldedUnits* folded) {
  if (folded) check_folded(m);
  const std::vector<Columns> columns = columns_of(m, folded != nullptr);
  const int64_t n_columns = int64_t(columns.size()), teams = std::min<int64_t>(threads, n_columns);
  const int64_t classes = m.width - m.units;
  std::vector<float> dots(n_columns * room_of_all(m)), grad_weights(m.rows * m.slots * m.heads);
  const active::Kernels& with = active::kernels();
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t team = 0; team < teams; ++team) {
    std::vector<float> piece(m.n_queries * BLOCK);
    for (int64_t i = team; i < n_columns; i += teams) {
      Columns c = columns[i];
      const float* grad = c.is_hidden ? grad_hidden : grad_linear;
      if (folded && c.is_hidden) {
        float* of_units = folded->scratch + team * m.rows * BLOCK;
        float* of_products = folded->grad_to_logits + c.at * classes;
        std::fill_n(of_products, c.n * classes, 0.f);
        const ActiveBackward block{folded->hidden + c.of_out, grad_linear, folded->to_logits + c.at * classes, nullptr,
                                   of_units, of_products, nullptr, nullptr, m.rows, c.n, 0, classes};
        with.backward_units(block, 0, c.n);
        grad = of_units;
        c.of_out = 0;
      }
      back(m, readers, c, weights, grad, grad_tables, grad_base, dots.data() + i * room_of_all(m), piece.data());
    }
  }
  gather_dots(m, readers, columns, dots.data(), grad_weights.data(), threads);
  back_scores(m, weights, grad_weights.data(), grad_scores);
}

}  // namespace grokfast
