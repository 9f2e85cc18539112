// Gradient filter and optimizer in one pass over every tensor, in one parallel region.
// Each thread owns one contiguous range of the concatenated elements (the same one every step, so its part stays in
// its own cache). Blocks of 256 elements are filtered into a buffer that stays in L1 and then handed to the optimizer,
// so that each stream crosses the memory bus once.
//
// Moving average: a ring of raw gradients and their running sum. Adding and subtracting drifts, so a slice of every
// tensor (of every 262,144 elements of a large one) is summed anew each step; every element has its turn once in
// 4 windows. The rounding error is bounded by the values of the last 5 windows, at a quarter of a stream of extra reads.
//
// A projection of the gradient needs sums over whole tensors, which are made before (row_wise.h); rows are clipped while
// the cache still holds them, and no row is shared by two threads. A norm of all weights is summed by the way, in chunks
// that are never shared either, and they are scaled at the end.
#include <algorithm>
#include <vector>

#include "../grokfast.h"
#include "row_wise.h"

namespace grokfast {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kSection = 262144;
constexpr int64_t kPrefetchRows = 4;
constexpr int64_t kSerialBelow = 32768;  // elements; smaller updates run on the calling thread

GF_CLONES void ema_block(const float* __restrict g, float* __restrict e, float* __restrict out, int64_t n, float weight,
                         float lamb) {
  for (int64_t i = 0; i < n; ++i) out[i] = ema_filter(g[i], e[i], weight, lamb);
}

GF_CLONES void projected_ema_block(const float* __restrict g, const float* __restrict w, float* __restrict e,
                                   float* __restrict out, int64_t n, Projection p, float weight, float lamb) {
  for (int64_t i = 0; i < n; ++i) out[i] = ema_filter(p.of(g[i], w[i]), e[i], weight, lamb);
}

// One of several averages, added to what is filtered.
GF_CLONES void average_block(const float* __restrict g, float* __restrict e, float* __restrict out, int64_t n,
                             float weight, float lamb) {
  for (int64_t i = 0; i < n; ++i) {
    e[i] = lerp(e[i], g[i], weight);
    out[i] = lamb == 0.f ? out[i] : out[i] + lamb * e[i];
  }
}

GF_CLONES void ma_block(const float* __restrict g, float* __restrict slot, float* __restrict sum, float* __restrict out,
                        int64_t n, float lamb) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = ma_filter(g[i], g[i], slot[i], sum[i], lamb);
    slot[i] = g[i];
  }
}

GF_CLONES void ma_block_bf16(const float* __restrict g, uint16_t* __restrict slot, float* __restrict sum,
                             float* __restrict out, int64_t n, float lamb) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t kept = to_bf16(g[i]);
    out[i] = ma_filter(g[i], from_bf16(kept), from_bf16(slot[i]), sum[i], lamb);
    slot[i] = kept;
  }
}

void ma_block(const float* g, uint16_t* slot, float* sum, float* out, int64_t n, float lamb) {
  ma_block_bf16(g, slot, sum, out, n, lamb);
}

GF_CLONES void add_block(const float* __restrict x, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

GF_CLONES void add_block_bf16(const uint16_t* __restrict x, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += from_bf16(x[i]);
}

void add_block(const uint16_t* x, float* sum, int64_t n) { add_block_bf16(x, sum, n); }

GF_CLONES void adam_block(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v,
                          int64_t n, Scalars s) {
  for (int64_t i = 0; i < n; ++i) adam(p[i], g[i], m[i], v[i], s);
}

GF_CLONES void sgd_block(float* __restrict p, const float* __restrict g, int64_t n, Scalars s) {
  for (int64_t i = 0; i < n; ++i) sgd(p[i], g[i], s);
}

GF_CLONES void sgd_momentum_block(float* __restrict p, const float* __restrict g, float* __restrict buffer, int64_t n,
                                  Scalars s) {
  for (int64_t i = 0; i < n; ++i) sgd_momentum(p[i], g[i], buffer[i], s);
}

GF_CLONES void lion_block(float* __restrict p, const float* __restrict g, float* __restrict m, int64_t n, Scalars s) {
  for (int64_t i = 0; i < n; ++i) lion(p[i], g[i], m[i], s);
}

// What an update works out once for a tensor.
struct Step {
  FilterKind filter;
  Scalars scalars;
  int64_t window, pushed;  // gradients in the history before this one
  bool fresh;              // no history yet
  RowWise row_wise{};
  Projection projection{};  // where row_wise has a share
  const double* averages = nullptr;
  int64_t n_averages = 0;
  double* squares = nullptr;  // of each chunk, where its weights are of a norm of all
};

// Sums anew the slice of [begin, end) whose turn it is at this step.
template <typename T>
void resum(const UpdateEntry& t, const T* ring, const Step& now, int64_t begin, int64_t end) {
  const int64_t period = kResumWindows * now.window, rows = std::min(now.pushed + 1, now.window);
  const int64_t section_size = std::min(kSection, t.size);
  const int64_t slice = ((section_size + period - 1) / period + 15) / 16 * 16;
  const int64_t turn = now.pushed % period;
  for (int64_t section = begin / section_size * section_size; section < end; section += section_size) {
    const int64_t low = std::max(begin, section + turn * slice);
    const int64_t high = std::min({end, section + section_size, section + (turn + 1) * slice});
    if (low >= high) continue;
    std::fill(t.filter2 + low, t.filter2 + high, 0.f);
    for (int64_t k = 0; k < rows; ++k) {
      const T* ahead = ring + (k + kPrefetchRows) * t.size;  // rows lie far apart: no hardware prefetch
      if (k + kPrefetchRows < rows)
        for (int64_t i = low; i < high; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(ahead + i);
      add_block(ring + k * t.size + low, t.filter2 + low, high - low);
    }
  }
}

// Elements [begin, end) of one tensor; T is the ring's type.
template <typename T>
void update_range(Rule rule, const UpdateEntry& t, const Step& now, int64_t begin, int64_t end) {
  alignas(64) float filtered[kBlock], changed[kBlock];
  const Scalars& s = now.scalars;
  const RowWise& own = now.row_wise;
  T* const ring = reinterpret_cast<T*>(t.filter1);
  const bool is_projected = own.share != 0, is_penalised = own.l1 != 0 || own.l2 != 0;
  const bool is_one_loop = is_projected && !is_penalised && now.filter == FilterKind::ema && !now.fresh && !now.averages;
  int64_t clipped = begin;  // rows up to here are done
  T* const slot = now.filter == FilterKind::ma ? ring + now.pushed % now.window * t.size : nullptr;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const float *const w = t.param + at, *g = t.grad + at;
    if (is_one_loop) {
      projected_ema_block(g, w, t.filter1 + at, filtered, n, now.projection, s.ema_weight, s.lamb);
      g = filtered;
    } else if (is_projected || is_penalised) {
      if (is_projected)
        project_block(g, w, changed, n, now.projection);
      else
        std::copy_n(g, n, changed);
      if (own.l1 != 0) add_signs(changed, w, n, float(own.l1));
      if (own.l2 != 0) add_weights(changed, w, n, float(2 * own.l2));
      g = changed;
    }
    if (now.averages) {
      std::copy_n(g, n, filtered);
      for (int64_t k = 0; k < now.n_averages; ++k) {
        float* const e = t.filter1 + k * t.size + at;
        if (now.fresh) std::copy_n(g, n, e);
        average_block(g, e, filtered, n, float(1 - now.averages[2 * k]), float(now.averages[2 * k + 1]));
      }
      g = filtered;
    } else if (now.filter == FilterKind::ema && !is_one_loop) {
      if (now.fresh) std::copy_n(g, n, t.filter1 + at);
      ema_block(g, t.filter1 + at, filtered, n, s.ema_weight, s.lamb);
      g = filtered;
    } else if (now.filter == FilterKind::ma) {
      if (now.pushed < now.window) std::fill_n(slot + at, n, T(0));
      if (now.fresh) std::fill_n(t.filter2 + at, n, 0.f);
      ma_block(g, slot + at, t.filter2 + at, filtered, n, s.lamb);
      g = filtered;
    }
    if (rule == Rule::adam)
      adam_block(t.param + at, g, t.state1 + at, t.state2 + at, n, s);
    else if (rule == Rule::lion)
      lion_block(t.param + at, g, t.state1 + at, n, s);
    else if (rule == Rule::none)
      std::copy_n(g, n, t.param + at);
    else if (t.state1)
      sgd_momentum_block(t.param + at, g, t.state1 + at, n, s);
    else
      sgd_block(t.param + at, g, n, s);
    for (; own.row > 0 && clipped + own.row <= at + n; clipped += own.row)
      clip_row(t.param + clipped, own.row, own.norm, own.is_held);
    if (now.squares) now.squares[at / kChunk] += sum_squares(t.param + at, n);
  }
  if (now.filter == FilterKind::ma) resum(t, ring, now, begin, end);
}

// Advances the tensor's counters.
Step begin_step(Rule rule, FilterKind filter, const UpdateEntry& t, const double* hyper, int64_t shared_step) {
  Step now;
  const bool on = hyper[enabled] != 0;
  const double step = t.step ? double(*t.step += 1.f) : double(shared_step);
  now.filter = on ? filter : FilterKind::none;
  now.pushed = t.count ? *t.count : shared_step - 1;
  now.window = int64_t(hyper[window_size]);
  now.fresh = (t.count || filter == FilterKind::ma) && now.pushed == 0;
  if (t.count) *t.count = on ? now.pushed + 1 : 0;
  now.scalars = prepare(rule, now.filter, hyper, step, now.pushed + 1);
  if (t.first) {  // torch starts a momentum buffer at the gradient itself, undamped
    std::fill_n(t.state1, t.size, 0.f);
    now.scalars.undamped = 1.f;
  }
  return now;
}

}  // namespace

void update(Rule rule, FilterKind filter, RingType ring, const UpdateEntry* entries, int64_t n_entries,
            const double* hyper, int64_t shared_step, int threads, const RowWise* row_wise, Averages averages) {
  for (int64_t i = 0; i < n_entries; ++i)
    if (const int64_t* count = entries[i].count; count && (*count < 0 || *count > kMaxCount))
      throw std::invalid_argument("count must be between 0 and 2**53, got " + std::to_string(*count));
  std::vector<Step> steps(n_entries);
  std::vector<int64_t> offset(n_entries + 1), chunks(n_entries + 1);
  const RowWise* together = nullptr;  // what is said of the tensors that are scaled as one
  for (int64_t i = 0; i < n_entries; ++i) {
    const UpdateEntry& t = entries[i];
    steps[i] = begin_step(rule, filter, t, hyper + t.hyper_row * hyper_count, shared_step);
    offset[i + 1] = offset[i] + t.size;
    if (averages.n && steps[i].filter == FilterKind::ema) {
      steps[i].averages = averages.numbers + 2 * averages.n * i;
      steps[i].n_averages = averages.n;
    }
    if (row_wise) steps[i].row_wise = row_wise[i];
    const bool is_of_all = row_wise && row_wise[i].row < 0;
    if (is_of_all) together = row_wise + i;
    chunks[i + 1] = chunks[i] + (is_of_all ? n_chunks(t) : 0);
  }
  std::vector<double> squares(chunks[n_entries]);
  for (int64_t i = 0; i < n_entries; ++i)
    if (chunks[i + 1] > chunks[i]) steps[i].squares = squares.data() + chunks[i];
  const int64_t total = offset[n_entries];
  if (total < kSerialBelow) threads = 1;
  const auto edge = [&](int64_t k) { return k == threads ? total : total * k / threads / 64 * 64; };
  for (int thread = 1; row_wise && thread < threads; ++thread) {  // of tensors that lie on an edge between threads
    const int64_t i = std::upper_bound(offset.begin(), offset.end(), edge(thread)) - offset.begin() - 1;
    if (i < n_entries && edge(thread) > offset[i] && edge(thread - 1) <= offset[i] && row_wise[i].share != 0)
      steps[i].projection = projection_of(entries[i], row_wise[i].share, threads);
  }
  const auto range = ring == RingType::bf16 ? update_range<uint16_t> : update_range<float>;
  // work(i, begin, end, is_whole) for what of each tensor is a thread's.
  const auto of_thread = [&](int thread, const auto& work) {
    const int64_t low = edge(thread), high = edge(thread + 1);
    int64_t i = std::upper_bound(offset.begin(), offset.end(), low) - offset.begin() - 1;
    for (; i < n_entries && offset[i] < high; ++i) {
      const int64_t row = steps[i].row_wise.row, size = entries[i].size, unit = row < 0 ? kChunk : std::max<int64_t>(row, 1);
      const auto whole_rows = [=](int64_t place) { return place >= size ? size : place / unit * unit; };
      const int64_t begin = whole_rows(std::max<int64_t>(0, low - offset[i])), end = whole_rows(high - offset[i]);
      work(i, begin, end, offset[i] >= low && offset[i + 1] <= high);
    }
  };

#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread)
    of_thread(thread, [&](int64_t i, int64_t begin, int64_t end, bool is_whole) {
      const double share = steps[i].row_wise.share;
      if (is_whole && share != 0) steps[i].projection = projection_of(entries[i], share, 1);
      if (begin < end) range(rule, entries[i], steps[i], begin, end);
    });
  if (!together) return;
  double sum = 0;
  for (const double part : squares) sum += part;
  const float factor = factor_of(sum, together->norm, together->is_held);
  if (factor == 1.f) return;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread)
    of_thread(thread, [&](int64_t i, int64_t begin, int64_t end, bool) {
      if (steps[i].squares && begin < end) scale(entries[i].param + begin, end - begin, factor);
    });
}

}  // namespace grokfast
