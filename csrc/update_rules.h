// One definition of each filter and optimizer update, per element, for the CPU and the CUDA kernels.
// Scalars that depend on the step only (bias corrections, 1 - lr * weight_decay, ...) are worked out once, in double,
// by `prepare`, exactly as torch.optim does in Python, and then rounded to float.
// References: Lee et al. 2024 (arXiv 2405.20233); Kingma & Ba 2015; Loshchilov & Hutter 2019; Chen et al. 2023
// (Lion, arXiv 2302.06675); torch.optim.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GF_INLINE __host__ __device__ __forceinline__
#else
#define GF_INLINE inline __attribute__((always_inline))
#endif

namespace grokfast {

enum class Rule : int { adam = 0, sgd = 1, lion = 2, none = 3 };  // none: the filtered gradient is written to `param`
enum class FilterKind : int { none = 0, ema = 1, ma = 2 };
enum class RingType : int { fp32 = 0, bf16 = 1 };

// What a caller gives: one row of doubles per parameter group (or per model of an ensemble), in this order.
enum Hyper : int { lr, beta1, beta2, eps, weight_decay, decoupled, momentum, dampening, nesterov, maximize, alpha, lamb,
                   window_size, window_mean, warmup, enabled, hyper_count };

// The same, ready for the inner loop.
struct Scalars {
  float sign;                 // -1 to maximize
  float decay, l2;            // p *= decay; g += l2 * p
  float one_minus_beta1, beta2, one_minus_beta2, bias2_sqrt, eps, step_size;
  float momentum, undamped;   // buffer = momentum * buffer + undamped * g
  bool nesterov;
  float ema_weight;           // 1 - alpha
  float lamb;                 // 0 while the filter is off; for a mean it is already divided by the count
};

// `step` and `window_count` have this step's gradient counted in.
GF_INLINE Scalars prepare(Rule rule, FilterKind filter, const double* h, double step, int64_t window_count) {
  Scalars s{};
  const bool is_decoupled = rule == Rule::lion || h[decoupled] != 0;
  s.sign = h[maximize] != 0 ? -1.f : 1.f;
  s.decay = is_decoupled ? float(1 - h[lr] * h[weight_decay]) : 1.f;
  s.l2 = is_decoupled ? 0.f : float(h[weight_decay]);
  if (rule == Rule::adam) {
    s.one_minus_beta1 = float(1 - h[beta1]);
    s.beta2 = float(h[beta2]);
    s.one_minus_beta2 = float(1 - h[beta2]);
    s.bias2_sqrt = float(std::sqrt(1 - std::pow(h[beta2], step)));
    s.eps = float(h[eps]);
    s.step_size = float(h[lr] / (1 - std::pow(h[beta1], step)));
  } else if (rule == Rule::lion) {
    s.one_minus_beta1 = float(1 - h[beta1]);
    s.one_minus_beta2 = float(1 - h[beta2]);
    s.step_size = float(h[lr]);
  } else {
    s.momentum = float(h[momentum]);
    s.undamped = float(1 - h[dampening]);
    s.nesterov = h[nesterov] != 0;
    s.step_size = float(h[lr]);
  }
  s.ema_weight = float(1 - h[alpha]);
  s.lamb = float(h[lamb]);
  if (filter == FilterKind::ma) {
    const double window = h[window_size];
    const double count = double(window_count) < window ? double(window_count) : window;
    const bool active = h[warmup] == 0 || count == window;
    s.lamb = !active ? 0.f : float(h[window_mean] != 0 ? h[lamb] / count : h[lamb]);
  }
  return s;
}

// a + w (b - a), from the nearer end, as torch.lerp: exact at w = 0, w = 1 and a = b.
GF_INLINE float lerp(float a, float b, float w) { return w < 0.5f ? a + w * (b - a) : b - (b - a) * (1.f - w); }

// e <- alpha e + (1 - alpha) g; returns g + lamb e, g itself for lamb = 0 (e may have overflowed).
GF_INLINE float ema_filter(float g, float& e, float ema_weight, float lamb) {
  e = lerp(e, g, ema_weight);
  return lamb == 0.f ? g : g + lamb * e;
}

// The oldest value leaves the running sum, `kept` (g as the ring stores it) comes in; returns g + lamb * sum, g itself
// while the filter is off (the sum may have overflowed).
GF_INLINE float ma_filter(float g, float kept, float oldest, float& sum, float lamb) {
  sum = sum - oldest + kept;
  return lamb == 0.f ? g : g + lamb * sum;
}

GF_INLINE float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest, ties to even.
GF_INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  return uint16_t((x == x ? rounded : bits | 0x400000) >> 16);  // rounding could carry a NaN into infinity
}

GF_INLINE void adam(float& p, float g, float& m, float& v, const Scalars& s) {
  g = s.sign * g + s.l2 * p;
  p *= s.decay;
  m = lerp(m, g, s.one_minus_beta1);
  v = v * s.beta2 + s.one_minus_beta2 * g * g;
  p -= s.step_size * m / (sqrtf(v) / s.bias2_sqrt + s.eps);
}

GF_INLINE void sgd(float& p, float g, const Scalars& s) { p -= s.step_size * (s.sign * g + s.l2 * p); }

GF_INLINE void sgd_momentum(float& p, float g, float& buffer, const Scalars& s) {
  g = s.sign * g + s.l2 * p;
  buffer = s.momentum * buffer + s.undamped * g;
  p -= s.step_size * (s.nesterov ? g + s.momentum * buffer : buffer);
}

GF_INLINE void lion(float& p, float g, float& m, const Scalars& s) {
  g *= s.sign;
  const float u = lerp(m, g, s.one_minus_beta1);
  p = p * s.decay - s.step_size * float((u > 0.f) - (u < 0.f));
  m = lerp(m, g, s.one_minus_beta2);
}

}  // namespace grokfast
