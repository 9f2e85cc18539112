// Gradient filter alone: e <- alpha e + (1 - alpha) g, out = g + lambda e (Lee et al. 2024, algorithm 2), for any inner
// optimizer. Three reads and two writes of 4 bytes an element, nothing else: bound by memory traffic.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../grokfast.h"

namespace grokfast {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

__global__ void ema_filter_kernel(const float* __restrict__ grad, float* __restrict__ ema, float* __restrict__ out,
                                  int64_t size, float ema_weight, float lamb) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride)
    out[i] = ema_filter(grad[i], ema[i], ema_weight, lamb);
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void cuda_ema_filter(const float* grad, float* ema, float* out, int64_t size, double alpha, float lamb, void* stream) {
  if (size == 0) return;
  constexpr int threads = 256;
  const int64_t blocks = (size + threads - 1) / threads;
  ema_filter_kernel<<<unsigned(blocks < 4096 ? blocks : 4096), threads, 0, static_cast<cudaStream_t>(stream)>>>(
      grad, ema, out, size, float(1 - alpha), lamb);
  check(cudaGetLastError(), "ema_filter");
}

}  // namespace grokfast
