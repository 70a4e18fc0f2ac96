// A 3×3 convolution of leaky(x) with its gradients, for training: Winograd's F(4×4, 3×3) all three times.
//
//     y  = W * leaky(x, slope) + b                            zero padding, same size
//     dx = leaky'(x) ∘ (Wᵀ rotated by 180° * dy)
//     dslope = Σ min(x, 0) ∘ (Wᵀ rotated * dy)
//     dW = Gᵀ [ Σ over tiles (Bᵀ leaky(x) B) (A dy Aᵀ)ᵀ ] G,     db = Σ dy
//
// Tensors are (batch, height, width, channels), channels multiples of 16; weights (3, 3, in, out). The slope is applied
// while a tile is read and its gradient computed while a tile is written, so neither costs a pass over memory. The order
// of sums is fixed for a given number of threads: training is bitwise reproducible.
#include <algorithm>
#include <new>
#include <vector>

#include "simd.h"
#include "threads.h"
#include "winograd.h"

namespace foveal {
namespace {

constexpr int LONG = 48;  // tiles whose products with gradients are summed in registers before the sums are stored
#if FOVEAL_LANES == 16 || defined(__aarch64__)
constexpr int ROWS = 8;
#else
constexpr int ROWS = 4;
#endif

// Floats aligned to a cache line; a later call for no more of them reuses the memory.
struct Room {
  std::vector<float> floats;
  float* take(int64_t size) {
    if (static_cast<int64_t>(floats.size()) < size + LINE) floats.resize(size + LINE);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(floats.data()) + 63) / 64 * 64);
  }
};

// Pictures cut into tiles, numbered along rows, then down, then from picture to picture.
struct Grid {
  int64_t batch, height, width;
  int64_t down() const { return (height + TILE - 1) / TILE; }
  int64_t across() const { return (width + TILE - 1) / TILE; }
  int64_t tiles() const { return batch * down() * across(); }

  struct Place {
    int64_t picture, y, x;
  };
  Place place(int64_t tile) const {
    return {tile / (down() * across()), tile / across() % down() * TILE, tile % across() * TILE};
  }
  int64_t pixel(const Place& at) const { return (at.picture * height + at.y) * width + at.x; }

  // `side`² pixels, starting `before` pixels before a tile's first, zero outside the picture: in place, or a copy in
  // `block`. Sets `row` to the row stride in floats.
  const float* around(const Place& at, int side, int before, const float* x, int64_t channels, float* block,
                      int64_t& row) const {
    const int64_t top = at.y - before, left = at.x - before;
    if (top >= 0 && left >= 0 && top + side <= height && left + side <= width) {
      row = width * channels;
      return x + ((at.picture * height + top) * width + left) * channels;
    }
    row = side * channels;
    std::fill_n(block, side * side * channels, 0.0f);
    const int64_t first = std::max<int64_t>(0, -left), last = std::min<int64_t>(side, width - left);
    for (int64_t y = std::max<int64_t>(0, -top); y < std::min<int64_t>(side, height - top); ++y)
      std::copy_n(x + ((at.picture * height + top + y) * width + left + first) * channels, (last - first) * channels,
                  block + (y * side + first) * channels);
    return block;
  }
};

// A square of SIDE² vectors to 36 points, with `spread` along its columns and then its rows, for each of `count` channels.
template <int SIDE, class Spread>
void square_to_points(const float* from, int64_t row, int64_t column, int64_t count, float* to, int64_t point,
                      const Spread& spread) {
  for (int64_t v = 0; v < count; v += LANES) {
    Vec half[REACH][SIDE];
    for (int x = 0; x < SIDE; ++x) {
      Vec d[SIDE], t[REACH];
      for (int y = 0; y < SIDE; ++y) d[y] = load(from + y * row + x * column + v);
      spread(d, t);
      for (int y = 0; y < REACH; ++y) half[y][x] = t[y];
    }
    for (int y = 0; y < REACH; ++y) {
      Vec t[REACH];
      spread(half[y], t);
      for (int x = 0; x < REACH; ++x) store(to + (y * REACH + x) * point + v, t[x]);
    }
  }
}

// (3, 3, in, out) to (36, in, out): G w Gᵀ.
void weights_to_points(const float* weight, int64_t plane, float* to) {
  square_to_points<3>(weight, 3 * plane, plane, plane, to, plane, [](const Vec w[3], Vec t[REACH]) {
    const Vec outer = w[0] + w[2], far = w[0] + 4.0f * w[2];
    t[0] = 0.25f * w[0];
    t[1] = (-1.0f / 6) * (outer + w[1]);
    t[2] = (-1.0f / 6) * (outer - w[1]);
    t[3] = (1.0f / 24) * (far + 2.0f * w[1]);
    t[4] = (1.0f / 24) * (far - 2.0f * w[1]);
    t[5] = w[2];
  });
}

// (36, in, out) to (3, 3, in, out): Gᵀ u G.
void weights_from_points(const float* from, int64_t plane, float* weight) {
  const auto gather = [](const Vec u[REACH], Vec w[3]) {
    const Vec near = u[1] + u[2], far = u[3] + u[4];
    w[0] = 0.25f * u[0] - (1.0f / 6) * near + (1.0f / 24) * far;
    w[1] = (1.0f / 6) * (u[2] - u[1]) + (1.0f / 12) * (u[3] - u[4]);
    w[2] = (1.0f / 6) * (far - near) + u[5];
  };
  for (int64_t i = 0; i < plane; i += LANES) {
    Vec half[REACH][3];
    for (int y = 0; y < REACH; ++y) {
      Vec u[REACH];
      for (int x = 0; x < REACH; ++x) u[x] = load(from + (y * REACH + x) * plane + i);
      gather(u, half[y]);
    }
    for (int x = 0; x < 3; ++x) {
      Vec u[REACH], w[3];
      for (int y = 0; y < REACH; ++y) u[y] = half[y][x];
      gather(u, w);
      for (int y = 0; y < 3; ++y) store(weight + (y * 3 + x) * plane + i, w[y]);
    }
  }
}

// A tile of 4×4 gradients to 36 points, A dy Aᵀ: the adjoint of `points_out`.
void gradients_in(const float* from, int64_t row, int64_t channels, float* to, int64_t point) {
  square_to_points<TILE>(from, row, channels, channels, to, point, [](const Vec y[TILE], Vec m[REACH]) {
    const Vec even = y[0] + y[2], odd = y[1] + y[3], far = y[0] + 4.0f * y[2], steep = 2.0f * y[1] + 8.0f * y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = far + steep;
    m[4] = far - steep;
    m[5] = y[3];
  });
}

// sum (ROWS × VECS vectors) += aᵀ d: a (tiles × in), d (tiles × out), both starting at the wanted row and column.
template <int VECS>
void correlate(const float* a, int64_t in, const float* d, int64_t out, int64_t tiles, float* sums) {
  Vec sum[ROWS][VECS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) sum[r][v] = load(sums + r * out + v * LANES);
  for (int64_t t = 0; t < tiles; ++t) {
    Vec row[VECS];
    for (int v = 0; v < VECS; ++v) row[v] = load(d + t * out + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vec x = fill(a[t * in + r]);
      for (int v = 0; v < VECS; ++v) sum[r][v] += x * row[v];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) store(sums + r * out + v * LANES, sum[r][v]);
}

}  // namespace

struct Conv3x3 {
  int64_t batch, height, width, in, out;
  const float *x, *weight;  // weight (3, 3, in, out)
  const float* slope;       // slope for x, one number; null for none
  const float* bias;        // (out); null for none
  float* y;
  // In the backward pass for x, y is multiplied by the slope of `gate`, which has y's shape; null for none.
  const float *gate, *gate_slope;
  float* slope_gradient;    // one number
};

struct Conv3x3Weights {
  int64_t batch, height, width, in, out;
  const float *x, *slope, *gradient;
  float *weight, *bias;  // gradients, (3, 3, in, out) and (out)
};

namespace {

void convolve(const Conv3x3& c, int threads) {
  const Grid grid{c.batch, c.height, c.width};
  const int64_t tiles = grid.tiles(), chunks = (tiles + CHUNK - 1) / CHUNK;
  Room points;
  float* weight = points.take(POINTS * c.in * c.out);
  weights_to_points(c.weight, c.in * c.out, weight);
  const float slope = c.slope == nullptr ? 1.0f : *c.slope, gate_slope = c.gate == nullptr ? 1.0f : *c.gate_slope;
  std::vector<double> slopes(chunks);
  parallel(chunks, threads, [&](int64_t chunk) {
    const int64_t begin = chunk * CHUNK, here = std::min<int64_t>(CHUNK, tiles - begin);
    const int64_t point_in = CHUNK * c.in + LINE, point_out = CHUNK * c.out + LINE;
    static thread_local Room room;
    float* base = room.take(POINTS * (point_in + point_out + std::max(c.in, c.out)));
    float *made = base + POINTS * point_in, *block = made + POINTS * point_out;
    for (int64_t t = 0; t < here; ++t) {
      int64_t row;
      const float* from = grid.around(grid.place(begin + t), REACH, 1, c.x, c.in, block, row);
      points_in(from, row, c.in, base + t * c.in, point_in, [slope](Vec x) { return leaky(x, slope); });
    }
    products(base, point_in, weight, made, point_out, up(here, GROUP), c.in, c.out);
    Vec slope_sum{};
    for (int64_t t = 0; t < here; ++t) {
      const Grid::Place at = grid.place(begin + t);
      const int64_t rows = std::min<int64_t>(TILE, c.height - at.y), columns = std::min<int64_t>(TILE, c.width - at.x);
      float* to = c.y + grid.pixel(at) * c.out;
      const float* gate = c.gate == nullptr ? nullptr : c.gate + grid.pixel(at) * c.out;
      points_out(made + t * c.out, point_out, c.out, [&](int64_t v) {
        const Vec bias = c.bias == nullptr ? Vec{} : load(c.bias + v);
        return [=, &slope_sum, width = c.width, out = c.out](int y, int x, Vec value) {
          if (y >= rows || x >= columns) return;
          const int64_t offset = (y * width + x) * out + v;
          value += bias;
          if (gate != nullptr) {
            const Vec z = load(gate + offset);
            slope_sum += smaller(z, Vec{}) * value;
            value = z > 0.0f ? value : value * gate_slope;
          }
          store(to + offset, value);
        };
      });
    }
    slopes[chunk] = sum(slope_sum);
  });
  if (c.slope_gradient != nullptr) {
    double total = 0;
    for (double part : slopes) total += part;
    *c.slope_gradient = static_cast<float>(total);
  }
}

void weight_gradients(const Conv3x3Weights& c, int threads) {
  const Grid grid{c.batch, c.height, c.width};
  const int64_t tiles = grid.tiles(), plane = c.in * c.out, each = POINTS * plane + c.out + LINE;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, tiles / LONG));
  std::vector<float> sums(parts * each);
  const float slope = c.slope == nullptr ? 1.0f : *c.slope;
  parallel(parts, threads, [&](int64_t part) {
    const int64_t last = tiles * (part + 1) / parts;
    const int64_t point_in = LONG * c.in + LINE, point_out = LONG * c.out + LINE;
    float *mine = sums.data() + part * each, *bias = mine + POINTS * plane;
    static thread_local Room room;
    float* base = room.take(POINTS * (point_in + point_out + std::max(c.in, c.out)));
    float *made = base + POINTS * point_in, *block = made + POINTS * point_out;
    for (int64_t begin = tiles * part / parts; begin < last; begin += LONG) {
      const int64_t here = std::min<int64_t>(LONG, last - begin);
      for (int64_t t = 0; t < here; ++t) {
        const Grid::Place at = grid.place(begin + t);
        int64_t row;
        const float* from = grid.around(at, REACH, 1, c.x, c.in, block, row);
        points_in(from, row, c.in, base + t * c.in, point_in, [slope](Vec x) { return leaky(x, slope); });
        from = grid.around(at, TILE, 0, c.gradient, c.out, block, row);
        gradients_in(from, row, c.out, made + t * c.out, point_out);
        // Point (1, 1) is the sum over the tile.
        const float* total = made + (REACH + 1) * point_out + t * c.out;
        for (int64_t v = 0; v < c.out; v += LANES) store(bias + v, load(bias + v) + load(total + v));
      }
      for (int p = 0; p < POINTS; ++p)
        for (int64_t r = 0; r < c.in; r += ROWS)
          for (int64_t v = 0; v < c.out;) {
            const float *a = base + p * point_in + r, *d = made + p * point_out + v;
            float* to = mine + p * plane + r * c.out + v;
            const bool two = v + 2 * LANES <= c.out;
            if (two)
              correlate<2>(a, c.in, d, c.out, here, to);
            else
              correlate<1>(a, c.in, d, c.out, here, to);
            v += two ? 2 * LANES : LANES;
          }
    }
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < POINTS * plane + c.out; ++i) sums[i] += sums[part * each + i];
  weights_from_points(sums.data(), plane, c.weight);
  std::copy_n(sums.data() + POINTS * plane, c.out, c.bias);
}

}  // namespace
}  // namespace foveal

extern "C" {

// Both return 0, or 1 if memory ran out.
int foveal_conv3x3(const foveal::Conv3x3* call, int threads) {
  return foveal::code_of([&] { foveal::convolve(*call, threads); });
}

int foveal_conv3x3_weights(const foveal::Conv3x3Weights* call, int threads) {
  return foveal::code_of([&] { foveal::weight_gradients(*call, threads); });
}
}
