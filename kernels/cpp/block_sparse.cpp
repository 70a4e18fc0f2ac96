// A linear layer whose weight is made of small dense blocks, of which only those that are not zero are stored.
//
//     y[m, o] = Σ_i x[m, i] · W[o, i] + b[o]
//
// Blocks are numbered along rows of blocks; block n of row r has starts[r] <= n < starts[r + 1] and covers the inputs
// columns[n] · wide … + wide. It is stored as (inputs, outputs), so that a vector holds neighbouring outputs: the sums of
// ROWS tokens and VECS vectors stay in registers over all blocks of a row, and a block is read once for every ROWS tokens.
#include <algorithm>

#include "simd.h"
#include "threads.h"

namespace foveal {

struct BlockSparse {
  int64_t rows, in, out, tall, wide;  // x (rows, in), y (rows, out), blocks of `tall` outputs and `wide` inputs
  const float *x, *values;            // values (blocks, wide, tall)
  const int64_t *starts, *columns;    // (out / tall + 1), (blocks)
  const float* bias;                  // (out), null for none
  float* y;
};

namespace {

constexpr int64_t CHUNK = 64;  // tokens of a task, whose inputs stay in the second cache
#if FOVEAL_LANES == 16 || defined(__aarch64__)
constexpr int ROWS = 8;
#elif FOVEAL_LANES == 8
constexpr int ROWS = 6;
#else
constexpr int ROWS = 4;
#endif

// The sums of ROWS tokens (of which `rows` exist) for VECS vectors of outputs of one row of blocks.
template <int VECS>
void sums(const BlockSparse& c, int64_t token, int64_t rows, int64_t line, int64_t inside) {
  const float* from[ROWS];
  for (int r = 0; r < ROWS; ++r) from[r] = c.x + (token + std::min<int64_t>(r, rows - 1)) * c.in;
  Vec sum[ROWS][VECS];
  for (int v = 0; v < VECS; ++v) {
    const Vec start = c.bias == nullptr ? Vec{} : load(c.bias + line * c.tall + inside + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r][v] = start;
  }
  for (int64_t n = c.starts[line]; n < c.starts[line + 1]; ++n) {
    const float* weight = c.values + n * c.tall * c.wide + inside;
    const int64_t first = c.columns[n] * c.wide;
    for (int64_t i = 0; i < c.wide; ++i, weight += c.tall) {
      Vec w[VECS];
      for (int v = 0; v < VECS; ++v) w[v] = load(weight + v * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const Vec x = fill(from[r][first + i]);
        for (int v = 0; v < VECS; ++v) sum[r][v] += x * w[v];
      }
    }
  }
  for (int r = 0; r < ROWS && r < rows; ++r)
    for (int v = 0; v < VECS; ++v) store(c.y + (token + r) * c.out + line * c.tall + inside + v * LANES, sum[r][v]);
}

void multiply(const BlockSparse& c, int threads) {
  parallel((c.rows + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk) {
    const int64_t end = std::min(c.rows, (chunk + 1) * CHUNK);
    for (int64_t line = 0; line < c.out / c.tall; ++line)
      for (int64_t inside = 0; inside < c.tall;) {
        const bool two = inside + 2 * LANES <= c.tall;
        for (int64_t token = chunk * CHUNK; token < end; token += ROWS) {
          if (two)
            sums<2>(c, token, end - token, line, inside);
          else
            sums<1>(c, token, end - token, line, inside);
        }
        inside += two ? 2 * LANES : LANES;
      }
  });
}

}  // namespace
}  // namespace foveal

extern "C" {

// Returns 0, or 1 if memory ran out. `tall` must be a multiple of 16.
int foveal_block_sparse(const foveal::BlockSparse* call, int threads) {
  return foveal::code_of([&] { foveal::multiply(*call, threads); });
}
}
