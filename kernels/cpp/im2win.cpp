// A convolution of windows in order (im2win).
//
//     y[i, j, o] = Σ_t z[i, j·s·kh·C + t] · f[t, o] + b[o],      t = (v·kh + u)·C + c
//     z[i, (x·kh + u)·C + c] = x[i·s + u − p, x − p, c]
//
// The kh rows under a row of outputs are copied column by column, so that a window is one contiguous piece of z and its
// right neighbour starts s columns further: windows overlap in memory, and every column is copied once for a row of
// outputs instead of kw times. Only the rows of one task are held. Sums of ROWS pixels and PANEL channels stay in
// registers over the whole window.
#include <algorithm>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace foveal {

struct Im2win {
  int64_t batch, height, width, in, out;  // x (batch, height, width, in), y (batch, down, across, out)
  int64_t kernel_height, kernel_width, stride, padding;
  const float *x, *weight, *bias;  // weight (panels, kernel_width, kernel_height, in, 16), bias (16 · panels)
  float* y;
};

namespace {

constexpr int PANEL = 16, VECS = PANEL / LANES;
constexpr int64_t CHUNK = 64;  // pixels of a task: whole rows, at least one
#if FOVEAL_LANES == 16 || defined(__aarch64__)
constexpr int ROWS = FOVEAL_LANES == 16 ? 14 : 6;
#elif FOVEAL_LANES == 8
constexpr int ROWS = 6;
#else
constexpr int ROWS = 2;
#endif

// PANEL channels of `rows` pixels, whose windows of `size` floats start at from[r].
void sums(const float* const from[ROWS], int64_t rows, int64_t size, const float* weight, const float* bias, float* y,
          int64_t pitch, int64_t channels) {
  Vec sum[ROWS][VECS];
#pragma GCC unroll 32
  for (int i = 0; i < ROWS * VECS; ++i) sum[i / VECS][i % VECS] = load(bias + i % VECS * LANES);
  for (int64_t t = 0; t < size; ++t, weight += PANEL) {
    Vec w[VECS];
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) w[v] = load(weight + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vec x = fill(from[r][t]);
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) sum[r][v] += x * w[v];
    }
  }
  for (int64_t r = 0; r < std::min<int64_t>(rows, ROWS); ++r) {
    if (channels == PANEL) {
      for (int v = 0; v < VECS; ++v) store(y + r * pitch + v * LANES, sum[r][v]);
    } else {
      float whole[PANEL];
      for (int v = 0; v < VECS; ++v) store(whole + v * LANES, sum[r][v]);
      std::copy_n(whole, channels, y + r * pitch);
    }
  }
}

// The windows of `lines` rows of outputs from row `first` on of one picture, (lines, columns, kernel_height, in).
void windows(const Im2win& c, const float* picture, int64_t first, int64_t lines, int64_t columns, float* to) {
  for (int64_t line = first; line < first + lines; ++line)
    for (int64_t x = -c.padding; x < columns - c.padding; ++x)
      for (int64_t u = 0; u < c.kernel_height; ++u, to += c.in) {
        const int64_t y = line * c.stride + u - c.padding;
        if (x < 0 || x >= c.width || y < 0 || y >= c.height)
          std::fill_n(to, c.in, 0.0f);
        else
          std::copy_n(picture + (y * c.width + x) * c.in, c.in, to);
      }
}

void convolve(const Im2win& c, int threads) {
  const int64_t down = (c.height + 2 * c.padding - c.kernel_height) / c.stride + 1;
  const int64_t across = (c.width + 2 * c.padding - c.kernel_width) / c.stride + 1;
  const int64_t columns = (across - 1) * c.stride + c.kernel_width;  // those that a window reads
  const int64_t column = c.kernel_height * c.in, size = c.kernel_width * column;
  const int64_t lines = std::min(down, std::max<int64_t>(1, CHUNK / across));
  const int64_t chunks = (down + lines - 1) / lines, panels = (c.out + PANEL - 1) / PANEL;
  // Small maps have fewer chunks than threads; then each is worked on by several, for some of the channels.
  const int64_t parts = std::max<int64_t>(1, std::min(panels, threads / std::max<int64_t>(1, c.batch * chunks)));
  parallel(c.batch * chunks * parts, threads, [&](int64_t task) {
    const int64_t part = task % parts, chunk = task / parts % chunks, picture = task / parts / chunks;
    const int64_t first = chunk * lines, here = std::min(lines, down - first);
    std::vector<float> z(here * columns * column);
    windows(c, c.x + picture * c.height * c.width * c.in, first, here, columns, z.data());
    float* y = c.y + (picture * down + first) * across * c.out;
    for (int64_t panel = part * panels / parts; panel < (part + 1) * panels / parts; ++panel)
      for (int64_t pixel = 0; pixel < here * across; pixel += ROWS) {
        const float* from[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          const int64_t at = std::min(pixel + r, here * across - 1);
          from[r] = z.data() + (at / across * columns + at % across * c.stride) * column;
        }
        sums(from, here * across - pixel, size, c.weight + panel * size * PANEL, c.bias + panel * PANEL,
             y + pixel * c.out + panel * PANEL, c.out, std::min<int64_t>(PANEL, c.out - panel * PANEL));
      }
  });
}

}  // namespace
}  // namespace foveal

extern "C" {

// Returns 0, or 1 if memory ran out.
int foveal_im2win(const foveal::Im2win* call, int threads) {
  return foveal::code_of([&] { foveal::convolve(*call, threads); });
}
}
