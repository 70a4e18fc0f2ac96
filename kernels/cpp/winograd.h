// Winograd's F(4×4, 3×3): 16 pixels of a 3×3 convolution with 36 products instead of 144.
//
// *Source*: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv:1509.09308).
// A tile of 6×6 pixels is transformed to 36 points, each point is multiplied by its own (channels × channels) matrix, and
// the results are transformed to 4×4 pixels:  Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A.
#pragma once

#include "simd.h"

namespace foveal {

constexpr int TILE = 4;          // side of a tile's output
constexpr int REACH = TILE + 2;  // side of a tile's input
constexpr int POINTS = REACH * REACH;
// Tiles and vectors of channels that one product holds in registers, and the products that share the 36 matrices while
// those are in cache.
#if FOVEAL_LANES == 16 || defined(__aarch64__)
constexpr int GROUP = 12;
#else
constexpr int GROUP = 6;
#endif
constexpr int CHUNK = 24;
constexpr int LINE = 16;  // floats per cache line: rows a power of two apart would compete for a few cache sets

inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Values at the six points 0, ±1, ±2, ∞ for four outputs and two more inputs.
inline void to_points(const Vec d[REACH], Vec t[REACH]) {
  const Vec a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = d[3] - d[1];
  t[0] = 4.0f * d[0] + (d[4] - 5.0f * d[2]);
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + 2.0f * e;
  t[4] = c - 2.0f * e;
  t[5] = 4.0f * d[1] + (d[5] - 5.0f * d[3]);
}

inline void from_points(const Vec m[REACH], Vec y[TILE]) {
  const Vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  y[0] = m[0] + p + r;
  y[1] = q + 2.0f * s;
  y[2] = p + 4.0f * r;
  y[3] = q + 8.0f * s + m[5];
}

// (tiles × depth) · (depth × VECS vectors): TILES rows of a, a stride of `width` floats between rows of w and of the
// result. A compile-time DEPTH saves the compiler a register per row.
template <int TILES, int VECS, int DEPTH>
inline void multiply(const float* a, int64_t any_depth, const float* w, int64_t width, float* out) {
  const int64_t depth = DEPTH ? DEPTH : any_depth;
  Vec sum[TILES][VECS];
#pragma GCC unroll 32
  for (int i = 0; i < TILES * VECS; ++i) sum[i / VECS][i % VECS] = Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[VECS];
    for (int v = 0; v < VECS; ++v) row[v] = load(w + k * width + v * LANES);
#pragma GCC unroll 16
    for (int t = 0; t < TILES; ++t) {
      const Vec x = fill(a[t * depth + k]);
      for (int v = 0; v < VECS; ++v) sum[t][v] += x * row[v];
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < TILES; ++t)
    for (int v = 0; v < VECS; ++v) store(out + t * width + v * LANES, sum[t][v]);
}

template <int TILES, int VECS>
inline void multiply(const float* a, int64_t depth, const float* w, int64_t width, float* out) {
  if (depth == 16)
    multiply<TILES, VECS, 16>(a, depth, w, width, out);
  else if (depth == 32)
    multiply<TILES, VECS, 32>(a, depth, w, width, out);
  else
    multiply<TILES, VECS, 0>(a, depth, w, width, out);
}

inline Vec leaky(Vec x, float slope) { return x > 0.0f ? x : x * slope; }

// A tile of 6×6 pixels, with a row stride of `row` floats, to 36 points, `point` floats apart; `read` is applied to the
// loaded values.
template <class Read>
inline void points_in(const float* from, int64_t row, int64_t channels, float* to, int64_t point, const Read& read) {
  for (int64_t v = 0; v < channels; v += LANES) {
    Vec half[REACH][REACH];
    for (int x = 0; x < REACH; ++x) {
      Vec d[REACH], t[REACH];
      for (int y = 0; y < REACH; ++y) d[y] = read(load(from + y * row + x * channels + v));
      to_points(d, t);
      for (int y = 0; y < REACH; ++y) half[y][x] = t[y];
    }
    for (int y = 0; y < REACH; ++y) {
      Vec t[REACH];
      to_points(half[y], t);
      for (int x = 0; x < REACH; ++x) store(to + (y * REACH + x) * point + v, t[x]);
    }
  }
}

// 36 points to a tile of 4×4 pixels: for each vector of channels, `at(first channel)` returns the consumer
// put(row, column, values), which captures by value what a store could otherwise alias.
template <class At>
inline void points_out(const float* from, int64_t point, int64_t channels, const At& at) {
  for (int64_t v = 0; v < channels; v += LANES) {
    const auto put = at(v);
    Vec half[TILE][REACH];
    for (int x = 0; x < REACH; ++x) {
      Vec m[REACH], y4[TILE];
      for (int y = 0; y < REACH; ++y) m[y] = load(from + (y * REACH + x) * point + v);
      from_points(m, y4);
      for (int y = 0; y < TILE; ++y) half[y][x] = y4[y];
    }
    for (int y = 0; y < TILE; ++y) {
      Vec pixels[TILE];
      from_points(half[y], pixels);
      for (int x = 0; x < TILE; ++x) put(y, x, pixels[x]);
    }
  }
}

// At each point, (tiles × in) · (in × out); `full` tiles, a multiple of GROUP; those after the last are arbitrary.
inline void products(const float* tiles, int64_t point_in, const float* weight, float* made, int64_t point_out,
                     int64_t full, int64_t in, int64_t out) {
  for (int p = 0; p < POINTS; ++p, weight += in * out) {
    for (int64_t v = 0; v < out;) {
      const bool two = v + 2 * LANES <= out;
      for (int64_t t = 0; t < full; t += GROUP) {
        const float* a = tiles + p * point_in + t * in;
        float* m = made + p * point_out + t * out + v;
        if (two)
          multiply<GROUP, 2>(a, in, weight + v, out, m);
        else
          multiply<GROUP, 1>(a, in, weight + v, out, m);
      }
      v += two ? 2 * LANES : LANES;
    }
  }
}

}  // namespace foveal
