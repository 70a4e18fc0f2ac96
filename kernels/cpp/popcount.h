// Vectors of 64-bit words whose set bits are counted: VPOPCNTDQ, table look-ups (AVX-512BW, AVX2), NEON, or shifts.
//
// Counts are collected in two steps: `bits` adds up to SHORT of them in whatever lanes the instructions count in, and
// `per_word` sums those lanes to one number for each 64-bit word.
#pragma once

#include "simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace foveal {

constexpr int WORDS = LANES / 2;  // 64-bit words of a vector

typedef uint64_t Words __attribute__((vector_size(4 * FOVEAL_LANES)));
typedef uint64_t LooseWords __attribute__((vector_size(4 * FOVEAL_LANES), aligned(8), may_alias));
typedef float Counts __attribute__((vector_size(2 * FOVEAL_LANES)));  // one float for each word

inline Words load(const uint64_t* p) { return *reinterpret_cast<const LooseWords*>(p); }
inline Words fill(uint64_t x) { return x - Words{}; }

#if defined(__AVX512VPOPCNTDQ__) && FOVEAL_LANES == 16

constexpr int SHORT = 1 << 20;
inline Words bits(Words v) { return reinterpret_cast<Words>(_mm512_popcnt_epi64(reinterpret_cast<__m512i>(v))); }
inline Words per_word(Words sums) { return sums; }

#elif defined(__AVX512BW__) && FOVEAL_LANES == 16

constexpr int SHORT = 31;  // a byte's count is at most 8, and its sum at most 255
inline Words bits(Words v) {
  const __m512i low = _mm512_set1_epi8(15), x = reinterpret_cast<__m512i>(v);
  const __m512i table = _mm512_set4_epi32(0x04030302, 0x03020201, 0x03020201, 0x02010100);  // bits of 0 to 15
  const __m512i first = _mm512_shuffle_epi8(table, _mm512_and_si512(x, low));
  const __m512i second = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), low));
  return reinterpret_cast<Words>(_mm512_add_epi8(first, second));
}
// Bytes of the sums are added as bytes: no carry passes from one to the next.
inline Words per_word(Words sums) {
  return reinterpret_cast<Words>(_mm512_sad_epu8(reinterpret_cast<__m512i>(sums), _mm512_setzero_si512()));
}

#elif defined(__AVX2__) && FOVEAL_LANES == 8

constexpr int SHORT = 31;
inline Words bits(Words v) {
  const __m256i low = _mm256_set1_epi8(15), x = reinterpret_cast<__m256i>(v);
  const __m256i table = _mm256_set_epi32(0x04030302, 0x03020201, 0x03020201, 0x02010100,  // bits of 0 to 15
                                         0x04030302, 0x03020201, 0x03020201, 0x02010100);
  const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
  const __m256i second = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
  return reinterpret_cast<Words>(_mm256_add_epi8(first, second));
}
inline Words per_word(Words sums) {
  return reinterpret_cast<Words>(_mm256_sad_epu8(reinterpret_cast<__m256i>(sums), _mm256_setzero_si256()));
}

#else

constexpr int SHORT = 31;
inline Words bits(Words v) {
#if defined(__aarch64__) && FOVEAL_LANES == 4
  return reinterpret_cast<Words>(vcntq_u8(reinterpret_cast<uint8x16_t>(v)));
#else
  const Words one = fill(uint64_t{0x5555555555555555}), two = fill(uint64_t{0x3333333333333333});
  v = v - ((v >> 1) & one);
  v = (v & two) + ((v >> 2) & two);
  return (v + (v >> 4)) & fill(uint64_t{0x0f0f0f0f0f0f0f0f});
#endif
}
inline Words per_word(Words sums) {
  const Words even = fill(uint64_t{0x00ff00ff00ff00ff});
  sums = (sums & even) + ((sums >> 8) & even);
  sums += sums >> 16;
  return (sums + (sums >> 32)) & fill(uint64_t{0xffff});
}

#endif

// One bit for each of LANES floats, the first the lowest: whether it is at least 0.
inline uint32_t signs(Vec x) {
#if defined(__AVX512F__) && FOVEAL_LANES == 16
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_setzero_ps(), _CMP_GE_OQ);
#elif defined(__AVX2__) && FOVEAL_LANES == 8
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_setzero_ps(), _CMP_GE_OQ)));
#elif defined(__SSE2__) && FOVEAL_LANES == 4
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpge_ps(reinterpret_cast<__m128>(x), _mm_setzero_ps())));
#else
  uint32_t found = 0;
  for (int i = 0; i < LANES; ++i) found |= static_cast<uint32_t>(x[i] >= 0.0f) << i;
  return found;
#endif
}

}  // namespace foveal
