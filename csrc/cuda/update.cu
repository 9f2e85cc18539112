// Gradient filter and optimizer for all tensors in one launch (Lee et al. 2024; the rules of update_rules.h): 9 streams
// of 4 bytes an element for EMA and AdamW, bound by memory traffic. Nothing is read back and all that changes from step
// to step lies on the device, so that a step can be captured in a CUDA graph and replayed.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "update_block.h"

namespace grokfast {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// 4 blocks of 256 threads on a multiprocessor: at most 64 registers.
template <typename Table>
__global__ void __launch_bounds__(kBlockThreads, 4) update_kernel(const __grid_constant__ Table table) {
  __shared__ BlockPlan plan;
  const int thread = int(threadIdx.x);
  if (thread == 0) find_chunk(table, blockIdx.x, plan);
  __syncthreads();
  read_hyper(table.call.tables, thread, plan);
  __syncthreads();
  if (thread == 0) plan_step(table.call, plan);
  __syncthreads();
  update_chunk(plan, thread);
  if (plan.resum_begin < plan.resum_end) {
    __syncthreads();  // the row that the block has just written
    resum_chunk(plan, thread);
  }
  __syncthreads();
  if (thread == 0) finish_block(plan);
}

template <typename Table>
void launch(const UpdateCall& call, const UpdateEntry* entries, int64_t n_entries, cudaStream_t stream) {
  for_each_table<Table>(call, entries, n_entries, [stream](const Table& table, int64_t blocks) {
    update_kernel<Table><<<unsigned(blocks), kBlockThreads, 0, stream>>>(table);
    check(cudaGetLastError(), "cuda_update: launch");
  });
}

// Makes a device current, and at the end of the scope the one before again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cuda_update: cudaGetDevice");
    check(cudaSetDevice(device_), "cuda_update: cudaSetDevice");
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

bool driver_takes_large_tables() {
  static const bool takes = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12010;
  }();
  return takes;
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void cuda_update(Rule rule, FilterKind filter, RingType ring, const UpdateEntry* entries, int64_t n_entries,
                 const DeviceTables& tables, int device, void* stream) {
  if (n_entries == 0) return;
  const DeviceGuard guard(device);
  const UpdateCall call{rule, filter, ring, elements_per_block(entries, n_entries), tables};
  const bool large = n_entries > SmallTable::capacity && driver_takes_large_tables();
  (large ? launch<LargeTable> : launch<SmallTable>)(call, entries, n_entries, static_cast<cudaStream_t>(stream));
}

}  // namespace grokfast
