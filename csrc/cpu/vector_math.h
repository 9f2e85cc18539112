// e^x and the normal distribution in float, branch-free, so that loops over them are vectorised.
#pragma once

#include <cstring>

#include "../grokfast.h"

namespace grokfast {

// e^x for x <= 0 to about 1 ulp (Cephes' expf): x = k ln 2 + r, a polynomial in r, k added to the exponent.
// Below the smallest normal result it is 0; NaN stays NaN.
GF_INLINE float exp_nonpositive(float x) {
  const float clamped = x < -87.3f ? -87.3f : x;
  const float shifted = clamped * 1.44269504088896341f + 12582912.f;  // 1.5 * 2^23 rounds to an integer
  const float k = shifted - 12582912.f;
  const float r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits - 0x4B400000u + 127u) << 23;  // 0x4B400000 is 1.5 * 2^23
  float scale;
  std::memcpy(&scale, &bits, 4);
  return x < -87.3f ? 0.f : y * scale;
}

// The standard normal distribution's density and integral from -infinity to z, to an absolute error of about 6e-8.
// With x = |z| / sqrt(2): erf as a polynomial in x below 1, erfc(x) = e^(-x^2) P(1 / (1 + 0.4 x)) from there; both
// polynomials are least-maximum fits of the relative error (4e-8 and 2e-8).
struct Normal {
  float density, integral;
};
GF_INLINE Normal normal(float z) {
  const float x = (z < 0.f ? -z : z) * 0.707106781f, square = z * z * 0.5f;
  const float decay = exp_nonpositive(-square), t = 1.f / (1.f + 0.4f * x);
  float near = -5.631668095e-4f;
  near = near * square + 4.917608890e-3f;
  near = near * square - 2.671135803e-2f;
  near = near * square + 1.128018165e-1f;
  near = near * square - 3.761232636e-1f;
  near = near * square + 1.128379123f;
  float far = -1.174913773e-1f;
  far = far * t + 2.469650066e-1f;
  far = far * t + 4.547034401e-3f;
  far = far * t + 2.151775421e-1f;
  far = far * t + 1.981187477e-1f;
  far = far * t + 2.267994259e-1f;
  far = far * t + 2.256200909e-1f;
  const float complement = x < 1.f ? 1.f - near * x : far * t * decay;  // erfc(x)
  return {0.398942280f * decay, z < 0.f ? 0.5f * complement : 1.f - 0.5f * complement};
}

}  // namespace grokfast
