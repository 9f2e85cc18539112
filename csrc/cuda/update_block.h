// What a block of the CUDA update does to its chunk of a tensor, in phases with a barrier between two: find_chunk,
// read_hyper, plan_step, update_chunk, resum_chunk, finish_block; those that take a `thread` are for all threads, the
// others for one. The kernel in update.cu and the emulation in update_like_cuda.cpp are these functions and nothing else.
// The pointer table travels in the kernel's arguments, as in torch's multi-tensor kernels, but a tensor takes one row
// whatever its size: a block finds its tensor by binary search in `first_chunk`.
#pragma once

#include <algorithm>

#include "../grokfast.h"

namespace grokfast {

constexpr int kBlockThreads = 256;
constexpr int kVector = 4;
constexpr int kOverrides = 4;  // lr, alpha, lamb, enabled

struct UpdateCall {
  Rule rule;
  FilterKind filter;
  RingType ring;
  int64_t chunk;  // elements of a block
  DeviceTables tables;
};

// Small chunks while the blocks of all tensors would otherwise leave multiprocessors idle, fewer prologues after that.
inline int64_t elements_per_block(const UpdateEntry* entries, int64_t n_entries) {
  int64_t total = 0;
  for (int64_t i = 0; i < n_entries; ++i) total += entries[i].size;
  return total < 2097152 ? 1024 : 4096;
}

// As many tensors as fit into `Bytes` of kernel arguments.
template <int Bytes>
struct UpdateTable {
  static constexpr int capacity =
      (Bytes - int(sizeof(UpdateCall)) - 2 * int(sizeof(int64_t))) / int(sizeof(UpdateEntry) + sizeof(int64_t));
  UpdateCall call;
  int64_t n;
  int64_t first_chunk[capacity + 1];
  UpdateEntry entry[capacity];
};
using SmallTable = UpdateTable<4096>;
using LargeTable = UpdateTable<32760>;  // the limit is 32,764 bytes, since CUDA 12.1
static_assert(sizeof(SmallTable) <= 4096 && sizeof(LargeTable) <= 32760, "a table is one kernel argument");

// Calls launch(table, blocks) for as many tables as the tensors fill. An empty tensor has a block, too: its step counts.
template <typename Table, typename Launch>
void for_each_table(const UpdateCall& call, const UpdateEntry* entries, int64_t n_entries, const Launch& launch) {
  for (int64_t begin = 0; begin < n_entries; begin += Table::capacity) {
    Table table;
    table.call = call;
    table.call.tables.tickets += begin;
    table.n = std::min<int64_t>(Table::capacity, n_entries - begin);
    table.first_chunk[0] = 0;
    for (int64_t i = 0; i < table.n; ++i) {
      table.entry[i] = entries[begin + i];
      const int64_t chunks = (table.entry[i].size + call.chunk - 1) / call.chunk;
      table.first_chunk[i + 1] = table.first_chunk[i] + std::max<int64_t>(1, chunks);
    }
    launch(table, table.first_chunk[table.n]);
  }
}

// What the threads of a block share.
struct BlockPlan {
  UpdateEntry tensor;
  Rule rule;
  FilterKind filter;  // none while it is off
  RingType ring;
  bool fresh, full;   // no history yet; the slot holds a value of the window
  bool vector;        // all of it lies on 16 bytes
  int64_t begin, end;
  int64_t slot;       // where the ring's row of this step begins
  int64_t rows;       // that were written, this one included
  int64_t resum_begin, resum_end;
  int32_t* ticket;
  int64_t blocks;     // that share the tensor
  float step;         // the counters after this step
  int64_t count;
  double hyper[hyper_count];
  Scalars scalars;
};

GF_INLINE bool on_16_bytes(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// A block's chunk is cut into 4 * window slices, one of which is summed anew at a step.
GF_INLINE int64_t resum_slice(int64_t chunk, int64_t window) {
  int64_t slice = 64;
  while (slice * kResumWindows * window < chunk) slice *= 2;
  return slice;
}

// The block's tensor and its elements.
template <typename Table>
GF_INLINE void find_chunk(const Table& table, int64_t block, BlockPlan& b) {
  int64_t low = 0, high = table.n;  // the tensor is in [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (table.first_chunk[middle] <= block ? low : high) = middle;
  }
  b.tensor = table.entry[low];
  b.ticket = table.call.tables.tickets + low;
  b.blocks = table.first_chunk[low + 1] - table.first_chunk[low];
  b.begin = (block - table.first_chunk[low]) * table.call.chunk;
  b.end = b.tensor.size < b.begin + table.call.chunk ? b.tensor.size : b.begin + table.call.chunk;
}

// One hyper-parameter for each of the first threads.
GF_INLINE void read_hyper(const DeviceTables& tables, int thread, BlockPlan& b) {
  if (thread >= hyper_count) return;
  const int64_t row = b.tensor.hyper_row;
  b.hyper[thread] = tables.hyper[row * hyper_count + thread];
  const int column = thread == lr ? 0 : thread == alpha ? 1 : thread == lamb ? 2 : thread == enabled ? 3 : -1;
  if (!tables.overrides || column < 0) return;
  if (const int64_t address = tables.overrides[row * kOverrides + column])
    b.hyper[thread] = double(*reinterpret_cast<const float*>(address));
}

// What this step is to do, from the counters before it.
GF_INLINE void plan_step(const UpdateCall& call, BlockPlan& b) {
  const UpdateEntry& t = b.tensor;
  const bool on = b.hyper[enabled] != 0;
  const int64_t pushed = t.count ? *t.count : 0, window = int64_t(b.hyper[window_size]);
  b.rule = call.rule;
  b.ring = call.ring;
  b.step = t.step ? *t.step + 1.f : 0.f;
  b.count = on ? pushed + 1 : 0;
  b.filter = on ? call.filter : FilterKind::none;
  b.fresh = t.count && pushed == 0;
  b.vector = b.end % kVector == 0 && on_16_bytes(t.param) && on_16_bytes(t.grad) && on_16_bytes(t.state1) &&
             on_16_bytes(t.state2) && on_16_bytes(t.filter1) && on_16_bytes(t.filter2);
  b.resum_begin = b.resum_end = b.end;
  if (b.filter == FilterKind::ma) {
    b.vector = b.vector && t.size % kVector == 0;  // so that every row of the ring lies on 16 bytes, or 8 in bf16
    b.full = pushed >= window;
    b.slot = pushed % window * t.size;
    b.rows = b.full ? window : pushed + 1;
    const int64_t slice = resum_slice(call.chunk, window);
    const int64_t turn = b.begin + pushed % (kResumWindows * window) * slice;
    if (turn < b.end) {
      b.resum_begin = turn;
      b.resum_end = turn + slice < b.end ? turn + slice : b.end;
    }
  }
  b.scalars = prepare(b.rule, b.filter, b.hyper, double(b.step), pushed + 1);
}

template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];
};

template <int N, typename T>
GF_INLINE Pack<T, N> load(const T* at) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(at));
#endif
  return *reinterpret_cast<const Pack<T, N>*>(at);
}

template <int N, typename T>
GF_INLINE void store(T* at, const Pack<T, N>& x) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(at));
  if constexpr (N * sizeof(T) == sizeof(float4)) {  // else the compiler takes some apart into four stores
    __stwb(reinterpret_cast<float4*>(at), make_float4(x.v[0], x.v[1], x.v[2], x.v[3]));
    return;
  }
#endif
  *reinterpret_cast<Pack<T, N>*>(at) = x;
}

// Elements [i, i + N). Every load comes before the first store, so that all of them are under way at once.
template <int N>
GF_INLINE void update_elements(const BlockPlan& b, int64_t i) {
  const UpdateEntry& t = b.tensor;
  const Scalars& s = b.scalars;
  const bool ema = b.filter == FilterKind::ema, ma = b.filter == FilterKind::ma, narrow = b.ring == RingType::bf16;
  float* const slot = t.filter1 + (b.slot + i);
  uint16_t* const narrow_slot = reinterpret_cast<uint16_t*>(t.filter1) + (b.slot + i);

  Pack<float, N> g = load<N>(t.grad + i), p{}, one{}, two{}, past{}, sum{};
  Pack<uint16_t, N> narrow_past{};
  if (b.rule != Rule::none) p = load<N>(t.param + i);
  if (t.state1) one = load<N>(t.state1 + i);
  if (t.state2) two = load<N>(t.state2 + i);
  if (ema) past = b.fresh ? g : load<N>(t.filter1 + i);
  if (ma && b.full && !narrow) past = load<N>(slot);
  if (ma && b.full && narrow) narrow_past = load<N>(narrow_slot);
  if (ma && !b.fresh) sum = load<N>(t.filter2 + i);

  if (ema) {
    for (int k = 0; k < N; ++k) g.v[k] = ema_filter(g.v[k], past.v[k], s.ema_weight, s.lamb);
    store<N>(t.filter1 + i, past);
  } else if (ma && narrow) {
    Pack<uint16_t, N> kept;
    for (int k = 0; k < N; ++k) {
      kept.v[k] = to_bf16(g.v[k]);
      g.v[k] = ma_filter(g.v[k], from_bf16(kept.v[k]), from_bf16(narrow_past.v[k]), sum.v[k], s.lamb);
    }
    store<N>(narrow_slot, kept);
    store<N>(t.filter2 + i, sum);
  } else if (ma) {
    store<N>(slot, g);
    for (int k = 0; k < N; ++k) g.v[k] = ma_filter(g.v[k], g.v[k], past.v[k], sum.v[k], s.lamb);
    store<N>(t.filter2 + i, sum);
  }

  for (int k = 0; k < N; ++k) {
    if (b.rule == Rule::adam)
      adam(p.v[k], g.v[k], one.v[k], two.v[k], s);
    else if (b.rule == Rule::lion)
      lion(p.v[k], g.v[k], one.v[k], s);
    else if (b.rule == Rule::none)
      p.v[k] = g.v[k];
    else if (t.state1)
      sgd_momentum(p.v[k], g.v[k], one.v[k], s);
    else
      sgd(p.v[k], g.v[k], s);
  }
  store<N>(t.param + i, p);
  if (t.state1) store<N>(t.state1 + i, one);
  if (t.state2) store<N>(t.state2 + i, two);
}

GF_INLINE void update_chunk(const BlockPlan& b, int thread) {
  if (b.vector) {
    for (int64_t i = b.begin + kVector * thread; i < b.end; i += kVector * kBlockThreads) update_elements<kVector>(b, i);
  } else {
    for (int64_t i = b.begin + thread; i < b.end; i += kBlockThreads) update_elements<1>(b, i);
  }
}

// Of one element, in the order of the rows; their loads do not wait for each other.
template <typename T>
GF_INLINE float sum_of_rows(const T* ring, int64_t size, int64_t rows) {
  float sum = 0.f;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
  for (int64_t k = 0; k < rows; ++k) {
    if constexpr (sizeof(T) == sizeof(float))
      sum += ring[k * size];
    else
      sum += from_bf16(ring[k * size]);
  }
  return sum;
}

GF_INLINE void resum_chunk(const BlockPlan& b, int thread) {
  const UpdateEntry& t = b.tensor;
  for (int64_t i = b.resum_begin + thread; i < b.resum_end; i += kBlockThreads)
    t.filter2[i] = b.ring == RingType::bf16
                       ? sum_of_rows(reinterpret_cast<const uint16_t*>(t.filter1) + i, t.size, b.rows)
                       : sum_of_rows(t.filter1 + i, t.size, b.rows);
}

GF_INLINE int take_ticket(int32_t* ticket) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  return atomicAdd(ticket, 1);
#else
  return (*ticket)++;
#endif
}

// The last block of a tensor moves its counters on; the others read theirs before they took a ticket.
GF_INLINE void finish_block(const BlockPlan& b) {
  if (take_ticket(b.ticket) != b.blocks - 1) return;
  *b.ticket = 0;
  if (b.tensor.step) *b.tensor.step = b.step;
  if (b.tensor.count) *b.tensor.count = b.count;
}

}  // namespace grokfast
