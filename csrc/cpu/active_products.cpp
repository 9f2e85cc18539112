// The products of an MLP with its hidden layer, and their gradients, only where a unit is active: active.h. Every sum has
// one order: the same bits for any number of threads.
#include "active.h"

#include <atomic>

#include "activation.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define GF_ISA avx512
#define GF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,bmi,bmi2,lzcnt,popcnt,fma,avx2")))
#define FLOATS 16
#define REGISTERS 32
#include "active_kernels.h"

#define GF_ISA avx2
#define GF_TARGET __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))
#define FLOATS 8
#define REGISTERS 16
#include "active_kernels.h"
#endif

#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#define GF_ISA baseline  // what the compiler takes for granted: NEON, SSE2, ...
#define GF_TARGET
#define FLOATS 4
#if defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#include "active_kernels.h"

namespace grokfast {

namespace active {
namespace {

constexpr int64_t FORWARD_ROWS = 32;  // of a tile

// Those that the processor has, the best first.
const std::vector<const Kernels*>& found() {
  static const auto all = [] {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
      found.push_back(&avx512::KERNELS);
    if (has_avx2) found.push_back(&avx2::KERNELS);
#endif
    found.push_back(&baseline::KERNELS);
    return found;
  }();
  return all;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> own{found().front()};
  return own;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

}  // namespace active

using namespace active;

std::vector<std::string> active_isas() {
  std::vector<std::string> names;
  for (const Kernels* own : found()) names.push_back(own->name);
  return names;
}

std::string active_isa() { return kernels().name; }

void use_active_isa(const std::string& name) {
  for (const Kernels* own : found())
    if (own->name == name) {
      chosen() = own;
      return;
    }
  throw std::invalid_argument("the processor has no " + name);
}

bool active_products_fit(int64_t width, int64_t units) { return fits(width) && units > 0 && units % LANES == 0; }

void active_forward(const float* hidden, const float* weights, const float* bias, const float* skip, float* out,
                    int64_t rows, int64_t units, int64_t width, int threads) {
  if (!active_products_fit(width, units)) throw std::invalid_argument("active_forward takes no such width or units");
  const OrZeros first(bias, width);
  const Kernels& with = kernels();
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t begin = 0; begin < rows; begin += FORWARD_ROWS) {
    const int64_t n = std::min(FORWARD_ROWS, rows - begin);
    float* own = out + begin * width;
    for (int64_t r = 0; r < n; ++r) {
      std::copy_n(first.at(), width, own + r * width);
      if (skip) add_row(own + r * width, skip + (begin + r) * width, width);
    }
    with.add_products(width / LANES, hidden + begin * units, n, units, weights, own, width);
  }
}

void active_backward(const ActiveBackward& p, int threads) {
  if (!active_products_fit(p.n_out, p.units) || (p.x && !active_products_fit(p.n_in, p.units)))
    throw std::invalid_argument("active_backward takes no such width or units");
  std::fill_n(p.grad_weights, p.units * p.n_out, 0.f);
  if (p.x) std::fill_n(p.grad_first, p.units * p.n_in, 0.f);
  if (p.grad_bias) std::fill_n(p.grad_bias, p.units, 0.f);
  const int64_t groups = p.units / LANES, teams = std::min<int64_t>(threads, groups);
  const Kernels& with = kernels();
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t i = 0; i < teams; ++i)
    with.backward_units(p, groups * i / teams * LANES, groups * (i + 1) / teams * LANES);
}

}  // namespace grokfast
