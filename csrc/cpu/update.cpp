// Gradient filter and optimizer in one pass over every tensor, in one parallel region.
// Each thread owns one contiguous range of the concatenated elements (the same one every step, so its part stays in
// its own cache). Blocks of 1,024 elements are filtered into a buffer that stays in L1 and then handed to the optimizer,
// so that each stream crosses the memory bus once.
//
// Moving average: a ring of raw gradients and their running sum. Adding and subtracting drifts, so a slice of every
// tensor (of every 262,144 elements of a large one) is summed anew each step; every element has its turn once in
// 4 windows. The rounding error is bounded by the values of the last 5 windows, at a quarter of a stream of extra reads.
#include <algorithm>
#include <vector>

#include "../grokfast.h"

namespace grokfast {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kSection = 262144;
constexpr int64_t kResumWindows = 4;
constexpr int64_t kPrefetchRows = 4;
constexpr int64_t kSerialBelow = 32768;  // elements; smaller updates run on the calling thread

GF_CLONES void ema_block(const float* __restrict g, float* __restrict e, float* __restrict out, int64_t n, float weight,
                         float lamb) {
  for (int64_t i = 0; i < n; ++i) out[i] = ema_filter(g[i], e[i], weight, lamb);
}

GF_CLONES void ma_block(const float* __restrict g, float* __restrict slot, float* __restrict sum, float* __restrict out,
                        int64_t n, float lamb) {
  for (int64_t i = 0; i < n; ++i) out[i] = ma_filter(g[i], slot[i], sum[i], lamb);
}

GF_CLONES void add_block(const float* __restrict x, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

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

// Sums anew the slice of [begin, end) whose turn it is at this step.
void resum(const UpdateEntry& t, int64_t begin, int64_t end, int64_t window, int64_t pushed) {
  const int64_t period = kResumWindows * window;
  const int64_t section_size = std::min(kSection, t.size);
  const int64_t slice = ((section_size + period - 1) / period + 15) / 16 * 16;
  const int64_t turn = pushed % period;
  for (int64_t section = begin / section_size * section_size; section < end; section += section_size) {
    const int64_t low = std::max(begin, section + turn * slice);
    const int64_t high = std::min({end, section + section_size, section + (turn + 1) * slice});
    if (low >= high) continue;
    std::fill(t.filter2 + low, t.filter2 + high, 0.f);
    for (int64_t k = 0; k < window; ++k) {
      const float* ahead = t.filter1 + (k + kPrefetchRows) * t.size;  // rows lie far apart: no hardware prefetch
      if (k + kPrefetchRows < window)
        for (int64_t i = low; i < high; i += 16) __builtin_prefetch(ahead + i);
      add_block(t.filter1 + k * t.size + low, t.filter2 + low, high - low);
    }
  }
}

// Elements [begin, end) of one tensor.
void update_range(Rule rule, FilterKind filter, const UpdateEntry& t, const Scalars& s, int64_t window, int64_t pushed,
                  int64_t begin, int64_t end) {
  alignas(64) float filtered[kBlock];
  float* slot = filter == FilterKind::ma ? t.filter1 + pushed % window * t.size : nullptr;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const float* g = t.grad + at;
    if (filter == FilterKind::ema) {
      ema_block(g, t.filter1 + at, filtered, n, s.ema_weight, s.lamb);
      g = filtered;
    } else if (filter == FilterKind::ma) {
      ma_block(g, slot + at, t.filter2 + at, filtered, n, s.lamb);
      g = filtered;
    }
    if (rule == Rule::adam)
      adam_block(t.param + at, g, t.state1 + at, t.state2 + at, n, s);
    else if (t.state1)
      sgd_momentum_block(t.param + at, g, t.state1 + at, n, s);
    else
      sgd_block(t.param + at, g, n, s);
  }
  if (filter == FilterKind::ma) resum(t, begin, end, window, pushed);
}

}  // namespace

void update(Rule rule, FilterKind filter, const UpdateEntry* entries, int64_t n_entries, const double* hyper,
            int64_t shared_step, int threads) {
  std::vector<Scalars> scalars(n_entries);
  std::vector<int64_t> pushed(n_entries), offset(n_entries + 1);  // gradients in the window before this one
  for (int64_t i = 0; i < n_entries; ++i) {
    const UpdateEntry& t = entries[i];
    const double step = t.step ? double(*t.step += 1.f) : double(shared_step);
    pushed[i] = t.window_count ? (*t.window_count)++ : shared_step - 1;
    scalars[i] = prepare(rule, filter, hyper + t.hyper_row * hyper_count, step, pushed[i] + 1);
    if (t.first) {  // torch starts a momentum buffer at the gradient itself, undamped
      std::fill_n(t.state1, t.size, 0.f);
      scalars[i].undamped = 1.f;
    }
    offset[i + 1] = offset[i] + t.size;
  }
  const int64_t total = offset[n_entries];
  if (total < kSerialBelow) threads = 1;

#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    const auto edge = [&](int64_t k) { return k == threads ? total : total * k / threads / 64 * 64; };
    const int64_t low = edge(thread), high = edge(thread + 1);
    int64_t i = std::upper_bound(offset.begin(), offset.end(), low) - offset.begin() - 1;
    for (; i < n_entries && offset[i] < high; ++i) {
      const int64_t begin = std::max<int64_t>(0, low - offset[i]), end = std::min(entries[i].size, high - offset[i]);
      const int64_t window = int64_t(hyper[entries[i].hyper_row * hyper_count + window_size]);
      if (begin < end) update_range(rule, filter, entries[i], scalars[i], window, pushed[i], begin, end);
    }
  }
}

}  // namespace grokfast
