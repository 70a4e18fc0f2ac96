// Vectors of LANES floats in the compiler's vector types: one source for AVX-512, AVX2, NEON and plain C++.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifndef FOVEAL_LANES
#define FOVEAL_LANES 8
#endif

namespace foveal {

constexpr int LANES = FOVEAL_LANES;

typedef float Vec __attribute__((vector_size(4 * FOVEAL_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * FOVEAL_LANES)));
typedef float LooseVec __attribute__((vector_size(4 * FOVEAL_LANES), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline Vec fill(float x) { return x - Vec{}; }
// If either is NaN, the result is the second, like that of the processor's instruction.
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}

// 2^x, relative error below 3e-7: x = n + r with |r| <= 1/2, a polynomial for 2^r, n added to the exponent's bits.
// Adding 1.5·2^23 rounds x to an integer in the low bits of the mantissa.
inline Vec exp2(Vec x) {
  const Vec magic = fill(12582912.0f);
  x = smaller(fill(127.0f), larger(fill(-126.0f), x));
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = fill(1.3390863e-3f);
  p = p * r + 9.6183548e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022650e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  IntVec exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

constexpr float LOG2E = 1.44269504f;

inline Vec exp(Vec x) { return exp2(x * LOG2E); }

// log(1 + e) for e in [0, 1], by 2·atanh(e / (2 + e)): no cancellation for small e.
inline Vec log1p_of_unit(Vec e) {
  const Vec s = e / (e + 2.0f);
  const Vec q = s * s;
  Vec p = fill(1.0f / 13);
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return 2.0f * s * p;
}

inline Vec softplus(Vec x) {
  const Vec size = larger(x, -x);
  return larger(Vec{}, x) + log1p_of_unit(exp(-size));
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

template <int... I>
inline Vec zip_low(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & 1) ? LANES + I / 2 : I / 2)...);
}
template <int... I>
inline Vec zip_high(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & 1) ? LANES + LANES / 2 + I / 2 : LANES / 2 + I / 2)...);
}

// Transpose: each of log2(LANES) rounds interleaves row i with row i + LANES / 2.
inline void transpose(Vec rows[LANES]) {
  using Lanes = std::make_integer_sequence<int, LANES>;
  for (int round = 1; round < LANES; round *= 2) {
    Vec next[LANES];
    for (int i = 0; i < LANES / 2; ++i) {
      next[2 * i] = zip_low(rows[i], rows[i + LANES / 2], Lanes{});
      next[2 * i + 1] = zip_high(rows[i], rows[i + LANES / 2], Lanes{});
    }
    for (int i = 0; i < LANES; ++i) rows[i] = next[i];
  }
}

}  // namespace foveal
