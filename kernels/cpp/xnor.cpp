// Products of signs, 64 at a time: sign(a) · sign(b) = n - 2 · popcount(bits(a) xor bits(b)), for matrices and convolutions.
//
//     y[m, o] = Σ_k s(a[m, k]) · s(b[o, k])                    s(x) = 1 for x >= 0, else -1
//     y = s(w) * s(x), zero outside the picture
//
// A row of signs is a row of 64-bit words, bit i of word j for value 64·j + i, unused bits 0 in both factors, so that they
// never differ. Pictures are (batch, height, width, channels); each pixel's channels fill whole words, and the pixels
// under one row of the kernel lie side by side. All sums are whole numbers below 2^24, exact in float.
//
// Outside the picture the bits are 0, which stands for -1; what those products added is subtracted again from the pixels
// on the border, so that the padding is a true zero.
#include <algorithm>
#include <cstring>
#include <vector>

#include "popcount.h"
#include "threads.h"

namespace foveal {

struct Signs {
  int64_t rows, columns;
  const float* x;
  uint64_t* words;  // (rows, ⌈columns / 64⌉)
};

struct XnorMatmul {
  int64_t batch, rows, columns, inner;
  const float* a;     // (batch, rows, inner)
  const uint64_t* b;  // (batch, columns, ⌈inner / 64⌉)
  float* y;           // (batch, rows, columns)
};

struct XnorConv {
  int64_t batch, height, width, in, out, kernel_height, kernel_width, stride, padding;
  const float* x;          // (batch, height, width, in)
  const uint64_t* weight;  // (out, kernel_height, kernel_width, ⌈in / 64⌉)
  float* y;                // (batch, height', width', out)
};

namespace {

constexpr int VECS = 2;              // vectors of outputs whose counts are held in registers
constexpr int GROUP = VECS * WORDS;  // outputs counted together
constexpr int64_t CHUNK = 64;        // rows of a task
#if FOVEAL_LANES == 16
constexpr int ROWS = 8;
#else
constexpr int ROWS = 3;
#endif

int64_t words_of(int64_t values) { return (values + 63) / 64; }

void pack_row(const float* x, int64_t count, uint64_t* words) {
  for (int64_t j = 0; j < words_of(count); ++j) {
    const float* from = x + 64 * j;
    const int64_t here = std::min<int64_t>(64, count - 64 * j);
    uint64_t word = 0;
    int64_t i = 0;
    for (; i + LANES <= here; i += LANES) word |= static_cast<uint64_t>(signs(load(from + i))) << i;
    for (; i < here; ++i) word |= static_cast<uint64_t>(from[i] >= 0.0f) << i;
    words[j] = word;
  }
}

// Rows of words (out, words) to (groups, words, GROUP): the words of GROUP outputs side by side, zeros where there is none.
std::vector<uint64_t> interleave(const uint64_t* rows, int64_t out, int64_t words) {
  std::vector<uint64_t> made((out + GROUP - 1) / GROUP * words * GROUP);
  for (int64_t o = 0; o < out; ++o) {
    uint64_t* to = made.data() + o / GROUP * words * GROUP + o % GROUP;
    for (int64_t j = 0; j < words; ++j) to[j * GROUP] = rows[o * words + j];
  }
  return made;
}

// Numbers of bits that differ, for ROWS rows and GROUP outputs. A row is `pieces` runs of `words` words, `step` apart.
void differing(const uint64_t* const from[ROWS], int64_t pieces, int64_t step, int64_t words, const uint64_t* weight,
               Words total[ROWS][VECS]) {
#pragma GCC unroll 16
  for (int i = 0; i < ROWS * VECS; ++i) total[i / VECS][i % VECS] = Words{};
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t begin = 0; begin < words; begin += SHORT) {
      Words sums[ROWS][VECS];
#pragma GCC unroll 16
      for (int i = 0; i < ROWS * VECS; ++i) sums[i / VECS][i % VECS] = Words{};
      const int64_t end = std::min<int64_t>(words, begin + SHORT), offset = piece * step;
      for (int64_t j = begin; j < end; ++j, weight += GROUP) {
        Words w[VECS];
        for (int v = 0; v < VECS; ++v) w[v] = load(weight + v * WORDS);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
          const Words x = fill(from[r][offset + j]);
          for (int v = 0; v < VECS; ++v) sums[r][v] += bits(x ^ w[v]);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < ROWS * VECS; ++i) total[i / VECS][i % VECS] += per_word(sums[i / VECS][i % VECS]);
    }
}

// y = n - 2 · count for `out` outputs of rows [0, rows), given by `place`: row → its words, and the row of y.
template <class Place>
void products(int64_t rows, const Place& place, int64_t pieces, int64_t step, int64_t words, const uint64_t* weight,
              int64_t n, int64_t out, float* y) {
  for (int64_t group = 0; group * GROUP < out; ++group, weight += pieces * words * GROUP) {
    const int64_t first = group * GROUP, count = std::min<int64_t>(GROUP, out - first);
    for (int64_t row = 0; row < rows; row += ROWS) {
      const uint64_t* from[ROWS];
      for (int r = 0; r < ROWS; ++r) from[r] = place(std::min(row + r, rows - 1));
      Words total[ROWS][VECS];
      differing(from, pieces, step, words, weight, total);
      for (int r = 0; r < ROWS && row + r < rows; ++r) {
        float sums[GROUP];
        for (int v = 0; v < VECS; ++v) {
          typedef int64_t Signed __attribute__((vector_size(4 * FOVEAL_LANES)));
          const Counts counts = __builtin_convertvector(reinterpret_cast<Signed>(total[r][v]), Counts);
          const Counts value = static_cast<float>(n) - 2.0f * counts;
          std::memcpy(sums + v * WORDS, &value, sizeof value);
        }
        std::copy_n(sums, count, y + (row + r) * out + first);
      }
    }
  }
}

void multiply(const XnorMatmul& c, int threads) {
  const int64_t words = words_of(c.inner), chunks = (c.rows + CHUNK - 1) / CHUNK;
  std::vector<std::vector<uint64_t>> weights(c.batch);
  parallel(c.batch, threads,
           [&](int64_t i) { weights[i] = interleave(c.b + i * c.columns * words, c.columns, words); });
  parallel(c.batch * chunks, threads, [&](int64_t task) {
    const int64_t picture = task / chunks, first = task % chunks * CHUNK, here = std::min(CHUNK, c.rows - first);
    std::vector<uint64_t> packed(here * words);
    for (int64_t row = 0; row < here; ++row)
      pack_row(c.a + (picture * c.rows + first + row) * c.inner, c.inner, packed.data() + row * words);
    products(here, [&](int64_t row) { return packed.data() + row * words; }, 1, 0, words,
             weights[picture].data(), c.inner, c.columns, c.y + (picture * c.rows + first) * c.columns);
  });
}

void convolve(const XnorConv& c, int threads) {
  const int64_t words = words_of(c.in), taps = c.kernel_height * c.kernel_width;
  const int64_t down = (c.height + 2 * c.padding - c.kernel_height) / c.stride + 1;
  const int64_t across = (c.width + 2 * c.padding - c.kernel_width) / c.stride + 1;
  const int64_t tall = c.height + 2 * c.padding, wide = c.width + 2 * c.padding;
  std::vector<uint64_t> packed(c.batch * tall * wide * words);
  parallel(c.batch * c.height, threads, [&](int64_t line) {
    const int64_t picture = line / c.height, y = line % c.height;
    uint64_t* to = packed.data() + ((picture * tall + y + c.padding) * wide + c.padding) * words;
    for (int64_t x = 0; x < c.width; ++x) pack_row(c.x + (line * c.width + x) * c.in, c.in, to + x * words);
  });
  const std::vector<uint64_t> weight = interleave(c.weight, c.out, taps * words);
  std::vector<float> outside(c.padding > 0 ? taps * c.out : 0);  // products with a pixel of -1, for each tap
  for (int64_t i = 0; i < static_cast<int64_t>(outside.size()); ++i) {
    const uint64_t* from = c.weight + ((i % c.out) * taps + i / c.out) * words;
    int64_t set = 0;
    for (int64_t j = 0; j < words; ++j) set += __builtin_popcountll(from[j]);
    outside[i] = static_cast<float>(c.in - 2 * set);
  }
  const int64_t pixels = c.batch * down * across;
  parallel((pixels + CHUNK - 1) / CHUNK, threads, [&](int64_t task) {
    const int64_t first = task * CHUNK, here = std::min(CHUNK, pixels - first);
    const auto place = [&](int64_t row) {
      const int64_t pixel = first + row, x = pixel % across, line = pixel / across;
      const int64_t top = line / down * tall + line % down * c.stride;
      return packed.data() + (top * wide + x * c.stride) * words;
    };
    float* y = c.y + first * c.out;
    products(here, place, c.kernel_height, wide * words, c.kernel_width * words, weight.data(), taps * c.in, c.out, y);
    if (outside.empty()) return;
    for (int64_t row = 0; row < here; ++row) {
      const int64_t pixel = first + row, line = pixel / across;
      const int64_t left = pixel % across * c.stride - c.padding, top = line % down * c.stride - c.padding;
      if (left >= 0 && top >= 0 && left + c.kernel_width <= c.width && top + c.kernel_height <= c.height) continue;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t at_y = top + tap / c.kernel_width, at_x = left + tap % c.kernel_width;
        if (at_y >= 0 && at_y < c.height && at_x >= 0 && at_x < c.width) continue;
        for (int64_t o = 0; o < c.out; ++o) y[row * c.out + o] -= outside[tap * c.out + o];
      }
    }
  });
}

}  // namespace
}  // namespace foveal

extern "C" {

// All return 0, or 1 if memory ran out.
int foveal_signs(const foveal::Signs* call, int threads) {
  return foveal::code_of([&] {
    const int64_t words = (call->columns + 63) / 64;
    foveal::parallel((call->rows + 63) / 64, threads, [&](int64_t task) {
      for (int64_t row = 64 * task; row < std::min(call->rows, 64 * task + 64); ++row)
        foveal::pack_row(call->x + row * call->columns, call->columns, call->words + row * words);
    });
  });
}

int foveal_xnor_matmul(const foveal::XnorMatmul* call, int threads) {
  return foveal::code_of([&] { foveal::multiply(*call, threads); });
}

int foveal_xnor_conv(const foveal::XnorConv* call, int threads) {
  return foveal::code_of([&] { foveal::convolve(*call, threads); });
}
}
