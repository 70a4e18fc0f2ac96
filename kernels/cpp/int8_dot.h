// 3×3 int8 convolutions: products of unsigned activations and signed weights, summed four at a time in 32 bits.
//
// Processors with int8 dot products (AVX-512 VNNI) do 64 multiplications per instruction, four times as many as for
// floats. Elsewhere the same sums are computed byte by byte, so that every library gives the same result.
#pragma once

#include "simd.h"

#if defined(__AVX512F__) && FOVEAL_LANES == 16
#include <immintrin.h>
#endif

namespace foveal {

typedef uint8_t ByteVec __attribute__((vector_size(FOVEAL_LANES)));
typedef int32_t LooseIntVec __attribute__((vector_size(4 * FOVEAL_LANES), aligned(4), may_alias));
typedef uint8_t LooseByteVec __attribute__((vector_size(FOVEAL_LANES), aligned(1), may_alias));

constexpr int WORD = 4;     // bytes whose products are summed at once
constexpr int ACROSS = 12;  // pixels whose sums are held in registers

inline IntVec load(const int32_t* p) { return *reinterpret_cast<const LooseIntVec*>(p); }

// sum + four · w over each lane's four weights: the bytes of `four` are unsigned, those of w signed.
inline IntVec int8_multiply_add(IntVec sum, int32_t four, IntVec w) {
#if defined(__AVX512VNNI__) && FOVEAL_LANES == 16
  return reinterpret_cast<IntVec>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), _mm512_set1_epi32(four), reinterpret_cast<__m512i>(w)));
#else
  const uint32_t a = static_cast<uint32_t>(four);
  for (int byte = 0; byte < WORD; ++byte)
    sum += ((w << (24 - 8 * byte)) >> 24) * static_cast<int32_t>((a >> (8 * byte)) & 255);
  return sum;
#endif
}

// Rounded to the nearest byte, ties to even.
inline void store_bytes(uint8_t* p, Vec x) {
  const Vec level = smaller(fill(255.0f), larger(Vec{}, x)) + 12582912.0f;  // 1.5·2^23: see simd.h
  IntVec bits;
  std::memcpy(&bits, &level, sizeof bits);
  // The low byte of each lane.
#if defined(__AVX512F__) && FOVEAL_LANES == 16
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(bits)));
#else
  *reinterpret_cast<LooseByteVec*>(p) = __builtin_convertvector(bits, ByteVec);
#endif
}

// Sums for ACROSS pixels of one row and VECS vectors of channels. `from`: bytes, `in` channels per pixel, with a row
// stride of `row` bytes; weight: (3, 3·in / 4, VECS vectors) words.
template <int VECS, int IN>
inline void int8_dot(const uint8_t* from, int64_t row, int64_t any_in, const int32_t* weight, IntVec sum[ACROSS][VECS]) {
  const int64_t in = IN ? IN : any_in, words = 3 * in / WORD;
#pragma GCC unroll 32
  for (int i = 0; i < ACROSS * VECS; ++i) sum[i / VECS][i % VECS] = IntVec{};
  for (int y = 0; y < 3; ++y, from += row)
    for (int64_t k = 0; k < words; ++k, weight += VECS * LANES) {
      IntVec w[VECS];
      for (int v = 0; v < VECS; ++v) w[v] = load(weight + v * LANES);
#pragma GCC unroll 16
      for (int t = 0; t < ACROSS; ++t) {
        int32_t four;
        std::memcpy(&four, from + t * in + k * WORD, WORD);
        for (int v = 0; v < VECS; ++v) sum[t][v] = int8_multiply_add(sum[t][v], four, w[v]);
      }
    }
}

// The same, passed to put(pixel, vector, sums), which captures by value what a store could otherwise alias.
template <int VECS, class Put>
inline void int8_dot(const uint8_t* from, int64_t row, int64_t in, const int32_t* weight, const Put& put) {
  IntVec sum[ACROSS][VECS];
  if (in == 16)
    int8_dot<VECS, 16>(from, row, in, weight, sum);
  else if (in == 32)
    int8_dot<VECS, 32>(from, row, in, weight, sum);
  else if (in == 64)
    int8_dot<VECS, 64>(from, row, in, weight, sum);
  else
    int8_dot<VECS, 0>(from, row, in, weight, sum);
#pragma GCC unroll 16
  for (int t = 0; t < ACROSS; ++t)
    for (int v = 0; v < VECS; ++v) put(t, v, __builtin_convertvector(sum[t][v], Vec));
}

}  // namespace foveal
