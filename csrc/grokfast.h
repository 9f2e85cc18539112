// The entry points of grokfast._C: raw pointers in, nothing allocated for the caller, no framework in sight.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "update_rules.h"

// Compiled three times, the best one picked when the library is loaded; only where compiler and processor allow it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__linux__)
#define GF_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define GF_CLONES
#endif

namespace grokfast {

// Throws (IndexError in Python) unless every index lies in [0, size).
inline void check_indices(const char* name, const int64_t* index, int64_t n, int64_t size) {
  for (int64_t i = 0; i < n; ++i)
    if (index[i] < 0 || index[i] >= size)
      throw std::out_of_range(std::string(name) + " must be in [0, " + std::to_string(size) + "), got " +
                              std::to_string(index[i]));
}

// The same of entries that may be negative, for none.
inline void check_below(const char* name, const int64_t* index, int64_t n, int64_t size) {
  for (int64_t i = 0; i < n; ++i)
    if (index[i] >= size) check_indices(name, index + i, 1, size);
}

constexpr int64_t kMaxCount = int64_t(1) << 53;  // of gradients in a history; beyond it no place in a ring is sure
constexpr int64_t kResumWindows = 4;  // every element of a running sum is summed anew once in so many windows

// One tensor of an update; unused pointers are null, memory is fp32 unless said otherwise.
// The history of a filter begins at count 0: an EMA starts at the gradient itself, slots of a ring that were not written
// since then count as zero, whatever they hold. While `enabled` is 0 in the tensor's row of hyper-parameters the filter's
// tensors are left alone and the count is 0, so that a new history begins when it is on again.
struct UpdateEntry {
  int64_t size;
  float *param;
  const float *grad;
  float *state1, *state2;    // exp_avg, exp_avg_sq | momentum_buffer | Lion's exp_avg
  float *step;               // torch's 0-dim fp32 step, incremented here | null: `shared_step` counts
  float *filter1, *filter2;  // ema | ring [window, size] (RingType), sum
  int64_t *count;            // gradients in the history, incremented here | null: `shared_step` counts, an EMA has begun
  int64_t first;             // the first step of an SGD momentum buffer (on the CPU; on a GPU it is there before)
  int64_t hyper_row;
};

// Of one tensor, what transforms do beside a filter, in this order. share: of the gradient's part along the weights, what
// is taken away, its length kept. l1, l2: the penalties l1 Σ|w| and l2 Σw², whose gradients are added before the filter.
// row: after the update every row of so many elements is at most as long as `norm`, or, held, just as long; -1: all such
// tensors together are; 0: nothing is. Rows lie one after the other, and a tensor has whole rows. 0 leaves out a part.
struct RowWise {
  double share, l1, l2, norm;
  int64_t row;
  bool is_held;
};

// Several averages of the gradient instead of one: of each entry and each average alpha and lamb; `filter1` is [n, size].
struct Averages {
  const double* numbers = nullptr;  // [n_entries, n, 2]
  int64_t n = 0;
};

// Throws (ValueError in Python), nothing changed, where a count is not in [0, kMaxCount]. row_wise: null, or one for each
// entry; not where `rule` is none. averages: where the filter is an EMA.
void update(Rule rule, FilterKind filter, RingType ring, const UpdateEntry* entries, int64_t n_entries,
            const double* hyper, int64_t shared_step, int threads, const RowWise* row_wise = nullptr,
            Averages averages = {});

// The same on a GPU, hundreds of tensors in one launch: entries lie on the host, all that they point to on the device, as
// do `hyper` [rows, hyper_count], `overrides` (null, or [rows, 4] addresses of fp32 scalars that replace lr, alpha, lamb
// and enabled; 0: the row's own) and `tickets` (one for each tensor, zero between steps). Adam needs a step, a moving
// average a count, and no two entries may share one.
struct DeviceTables {
  const double* hyper;
  const int64_t* overrides;
  int32_t* tickets;
};

// The CUDA kernel's own code run on host memory, block after block; `large_tables` as on drivers since CUDA 12.1.
void update_like_cuda(Rule rule, FilterKind filter, RingType ring, const UpdateEntry* entries, int64_t n_entries,
                      const DeviceTables& tables, bool large_tables);

enum class Activation : int { identity = 0, relu = 1, square = 2, abs = 3, gelu = 4 };

// out[e, n, :] = act(w_a[e, a[e, n]] + w_b[e, b[e, n]] + bias[e]); models of the tables lie `stride_*` floats apart.
struct PairTables {
  const float *w_a, *w_b, *bias;  // [E, rows_a, width], [E, rows_b, width], [E, width] or null
  int64_t stride_a, stride_b, stride_bias;
  int64_t rows_a, rows_b, width;
};
inline void check_pairs(const PairTables& t, const int64_t* a, const int64_t* b, int64_t n) {
  check_indices("pairs[..., 0]", a, n, t.rows_a);
  check_indices("pairs[..., 1]", b, n, t.rows_b);
}
void pair_embed_forward(const PairTables& t, const int64_t* a, const int64_t* b, float* out, int64_t models, int64_t n,
                        Activation activation, int threads);
void pair_embed_backward(const PairTables& t, const int64_t* a, const int64_t* b, const float* grad_out, float* grad_a,
                         float* grad_b, float* grad_bias, int64_t models, int64_t n, Activation activation, int threads);

enum class Loss : int { cross_entropy = 0, mse = 1 };

// Loss and accuracy per model, and d loss / d logits (skipped when null), in one pass over logits [E, n, classes], whose
// rows, of the gradient too, lie `stride` floats apart. They are means over `of` rows: n, or more where these are a part.
void classify(Loss loss, const float* logits, const int64_t* target, float* grad_logits, float* loss_out,
              float* accuracy_out, int64_t models, int64_t n, int64_t of, int64_t classes, int64_t stride,
              int threads);

// Loss, accuracy and, unless grad_a is null, every gradient of one model on n pairs, relu(w_a[a] + w_b[b] + bias) weightᵀ +
// out_bias, in one pass over the rows, where pair_rows_fit. Gradients are written, not added to.
struct PairRows {
  PairTables tables;
  const float *weight, *bias;  // [classes, width], [classes] or null
  int64_t classes;
  const int64_t *a, *b, *target;  // [n] each
  int64_t n;
  float *grad_a, *grad_b, *grad_weight, *grad_bias;
};
bool pair_rows_fit(int64_t classes);
void pair_rows(const PairRows& p, Loss loss, double* loss_out, double* accuracy_out, int threads);

// Loss, accuracy and, unless there are no gradients, every gradient of one network of fully connected layers, a tile of rows
// at a time (cpu/mlp_rows.cpp). Gradients are written, not added to.
struct RowLoss {
  enum Kind : int { cross_entropy, mse, hinge, stablemax, signs } kind;
  float temperature = 1.f, smoothing = 0.f;  // of cross_entropy
};
struct MlpLayer {
  const float *weight, *bias;  // [n_out, n_in], [n_out] or null
  float *grad_weight, *grad_bias;
  int64_t n_in, n_out;
};
struct MlpRows {
  const float* features;    // [n, n_in of the first layer], or null:
  const int64_t* index;     // [n, slots]: the first layer is the sum of these rows of its weight, then [n_in, n_out]
  const int64_t* target;    // [n]: classes; of RowLoss::signs -1 or 1
  const MlpLayer* layers;
  int64_t n, slots, n_layers;
  Activation activation;
  RowLoss loss;
  bool wants_gradient;
};
bool mlp_rows_are_fast();  // whether this processor is one where they have been measured to be
void mlp_rows(const MlpRows& p, double* loss_out, double* accuracy_out, int threads);

// Products with a relu's hidden layer [rows, units], made only where it is not zero (cpu/active.h).
// The instruction sets they are compiled for and the processor has, the best first; the one in use, and another one of
// them for the process, all with the same bits where multiplications are fused.
std::vector<std::string> active_isas();
std::string active_isa();
void use_active_isa(const std::string& name);
// Whether rows of `width` floats and so many units are taken.
bool active_products_fit(int64_t width, int64_t units);
// out [rows, width] = hidden weights + bias + skip: weights [units, width]; bias [width] and skip [rows, width] or null.
void active_forward(const float* hidden, const float* weights, const float* bias, const float* skip, float* out,
                    int64_t rows, int64_t units, int64_t width, int threads);
// What comes back through relu(x firstᵀ + bias) weights; all are written, grad_bias may be null.
struct ActiveBackward {
  const float *hidden, *grad_out, *weights, *x;  // [rows, units], [rows, n_out], [units, n_out], [rows, n_in]
  float *grad_hidden;                            // [rows, units], of the relu's input
  float *grad_weights, *grad_first, *grad_bias;  // [units, n_out], [units, n_in] or null as x, [units] or null
  int64_t rows, units, n_in, n_out;
};
void active_backward(const ActiveBackward& p, int threads);

// Who reads row k of a table: items[start[k] .. start[k + 1]), in increasing order; null items are 0, 1, 2, ...
struct Readers {
  const int64_t *start, *items;
  int64_t rows;
};
// Fills start [rows + 1] and items [n] for an index [n] into `rows` rows; negative entries read nothing.
void group_readers(const int64_t* index, int64_t n, int64_t rows, int64_t* start, int64_t* items);
// out[k, :] = sum of x[i, :] over the readers i of row k.
void sum_readers(const float* x, const Readers& readers, float* out, int64_t width, int threads);

// z <- act(z + bias), relu or gelu; slope receives the gelu's derivative unless null, as bias may be.
void activate_forward(float* z, const float* bias, float* slope, int64_t rows, int64_t width, Activation activation,
                      int threads);
// grad <- grad * act', from the relu's output or the gelu's slope; grad_bias receives its column sums unless null.
void activate_backward(float* grad, const float* kept, float* grad_bias, int64_t rows, int64_t width,
                       Activation activation, int threads);
// out[r, :] += table[index[r], :] + bias; a null index is 0, 1, 2, ..., and one of table and bias may be null.
void add_rows(float* out, const float* table, const int64_t* index, const float* bias, int64_t rows, int64_t width,
              int threads);

// out = (x - mean) / sqrt(variance + eps) * weight + bias row by row; stats [rows, 2] receives the mean and the factor.
void layer_norm_forward(const float* x, const float* weight, const float* bias, float* out, float* stats, int64_t rows,
                        int64_t width, float eps, int threads);
void layer_norm_backward(const float* x, const float* weight, const float* stats, const float* grad, float* grad_x,
                         float* grad_weight, float* grad_bias, int64_t rows, int64_t width, int threads);

// y += bias + skip[index], as add_rows has them, both perhaps null; out = LayerNorm(y) (csrc/cpu/residual_norm.cpp).
struct ResidualNorm {
  const float *weight, *offset;  // [width] each
  int64_t rows, width;
};
void residual_norm_forward(const ResidualNorm& n, float* y, const float* bias, const float* skip, const int64_t* index,
                           float* out, float* stats, float eps, int threads);
// grad_y from `grad` of out and `along`, null or [rows - first, width], that of y itself from row `first` on; grad_bias,
// unless null, receives the sum of its rows.
void residual_norm_backward(const ResidualNorm& n, const float* y, const float* stats, const float* grad,
                            const float* along, int64_t first, float* grad_y, float* grad_weight, float* grad_offset,
                            float* grad_bias, int threads);

// out[r] = sum_j w[r, j] v[keys[r, j]] with w = softmax over j of q[query[r]] k[keys[r, j]] / sqrt(d_head), per head.
struct GatheredAttention {
  const float *q, *kv;          // [n_queries, heads * d_head], [n_keys, 2 * heads * d_head]: keys, then values
  int64_t stride_q, stride_kv;  // floats from row to row, of their gradients, too
  const int64_t *query, *keys;  // [rows] or null: 0, 1, 2, ...; [rows, slots], the keys of a row first, -1 from there
  int64_t rows, slots, n_queries, n_keys, heads, d_head;
};
void gathered_attention_forward(const GatheredAttention& a, float* out, float* weights, int threads);
void gathered_attention_backward(const GatheredAttention& a, const Readers& by_query, const Readers& by_key,
                                 const float* weights, const float* grad_out, float* grad_q, float* grad_kv,
                                 int threads);

// Rows that are mixed of rows of tables, one table a head, by attention to a few keys (csrc/cpu/mixed_rows.cpp).
//   mixed[r] = base[query[r]] + sum_s sum_h v[r, s, h] tables[h, keys[r, s]]   with v = rate w + 1 - rate, and
//   w[r, :, h] = softmax over the keys of row r and the common one of scores[query[r], key, h].
// The first `units` columns are the input of a relu, which is made; the others stay as they are. The common key has no
// part in the sum: base has it, and the others' tables are differences from its rows.
struct MixedRows {
  const float *tables, *scores, *base;  // [heads, n_keys, width], [n_queries, n_keys, heads], [n_queries, width]
  const int64_t *keys, *query;          // [rows, slots]; [rows] or null: one query
  int64_t rows, slots, n_keys, n_queries, heads, units, width, common;  // common: a key, or -1
  float rate;
};
// hidden [rows, units], linear [rows, width - units], weights w [rows, slots, heads]. to_logits: null, or
// [units, width - units] as active_products_fit takes it; then linear receives linear + hidden to_logits, and hidden what
// the backward pass needs of it, 64 units of all rows and then the next 64.
void mixed_rows_forward(const MixedRows& m, float* hidden, float* linear, float* weights, int threads,
                        const float* to_logits = nullptr);
struct FoldedUnits {
  const float *hidden, *to_logits;  // of the forward pass
  float *grad_to_logits, *scratch;  // scratch [threads, rows, 64]
};
// From the gradients of the relu's input and of linear those of tables, scores and base; readers: of the flat keys.
// folded: null, or instead of the first of these what it is made of.
void mixed_rows_backward(const MixedRows& m, const Readers& readers, const float* weights, const float* grad_hidden,
                         const float* grad_linear, float* grad_tables, float* grad_scores, float* grad_base,
                         int threads, const FoldedUnits* folded = nullptr);

#if defined(GROKFAST_WITH_CUDA)
int cuda_device_count();
void cuda_update(Rule rule, FilterKind filter, RingType ring, const UpdateEntry* entries, int64_t n_entries,
                 const DeviceTables& tables, int device, void* stream);
#endif

}  // namespace grokfast
