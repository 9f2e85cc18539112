// Activations and their derivatives from an activation's input. Only a gelu is dear enough to keep its derivative.
#pragma once

#include "vector_math.h"

namespace grokfast {

GF_INLINE float activate(float z, Activation activation) {
  switch (activation) {
    case Activation::relu: return z < 0.f ? 0.f : z;  // keeps NaN
    case Activation::square: return z * z;
    case Activation::abs: return z < 0.f ? -z : z;
    case Activation::gelu: return z * normal(z).integral;
    default: return z;
  }
}

GF_INLINE float slope(float z, Activation activation) {
  switch (activation) {
    case Activation::relu: return z > 0.f ? 1.f : 0.f;
    case Activation::square: return 2.f * z;
    case Activation::abs: return float(z > 0.f) - float(z < 0.f);
    case Activation::gelu: { const Normal n = normal(z); return n.integral + z * n.density; }
    default: return 1.f;
  }
}

// One loop per activation, so that each is vectorised.
#define GF_PER_ACTIVATION(expression)                                                         \
  switch (activation) {                                                                       \
    case Activation::relu: { constexpr auto kind = Activation::relu; expression; } break;     \
    case Activation::square: { constexpr auto kind = Activation::square; expression; } break; \
    case Activation::abs: { constexpr auto kind = Activation::abs; expression; } break;       \
    case Activation::gelu: { constexpr auto kind = Activation::gelu; expression; } break;     \
    default: { constexpr auto kind = Activation::identity; expression; }                      \
  }

}  // namespace grokfast
