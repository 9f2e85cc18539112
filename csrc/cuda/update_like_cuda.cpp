// The blocks of the CUDA update, one after the other, on host memory: the kernel's tables, search, slices, tickets and
// arithmetic run in tests without a GPU. Odd blocks go first, for nothing may depend on their order.
#include "update_block.h"

namespace grokfast {
namespace {

template <typename Table>
void run_blocks(const UpdateCall& call, const UpdateEntry* entries, int64_t n_entries) {
  for_each_table<Table>(call, entries, n_entries, [](const Table& table, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      const int64_t odd = blocks / 2;
      BlockPlan plan;
      find_chunk(table, k < odd ? 2 * k + 1 : 2 * (k - odd), plan);
      for (int thread = 0; thread < kBlockThreads; ++thread) read_hyper(table.call.tables, thread, plan);
      plan_step(table.call, plan);
      for (int thread = 0; thread < kBlockThreads; ++thread) update_chunk(plan, thread);
      for (int thread = 0; thread < kBlockThreads; ++thread) resum_chunk(plan, thread);
      finish_block(plan);
    }
  });
}

}  // namespace

void update_like_cuda(Rule rule, FilterKind filter, RingType ring, const UpdateEntry* entries, int64_t n_entries,
                      const DeviceTables& tables, bool large_tables) {
  const UpdateCall call{rule, filter, ring, elements_per_block(entries, n_entries), tables};
  (large_tables ? run_blocks<LargeTable> : run_blocks<SmallTable>)(call, entries, n_entries);
}

}  // namespace grokfast
