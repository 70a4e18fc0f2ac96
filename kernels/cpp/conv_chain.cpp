// A plain super-resolution network in one call: 3×3 convolutions without padding, each with a leaky slope, and a linear
// upsampler beside them.
//
//     x_0     = the picture, 3 colours in [0, 1]
//     x_(l+1) = leaky(W_l * x_l + b_l, slope_l)           l < layers - 1
//     detail  = W_last * x_last + b_last                  s² phases
//     out     = shuffle(base * x_0 of each colour + detail)
//
// All layers but the first are Winograd's F(4×4, 3×3): 36 products make 16 pixels where a direct convolution takes 144.
// Activations lie pixel by pixel, channels side by side, so both transforms are sums of whole vectors, and between them
// stand 36 products of matrices (tiles × channels) · (channels × channels). The last layer's pixels never go to memory as
// floats: base is added, and they are rounded to bytes, while they are in the cache.
//
// Work is cut into strips of 4 rows of one layer. Strips are taken in order, each waits for the strips that it reads and
// for those that read what it overwrites, so threads never meet at a barrier and any number of them comes to an end.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "simd.h"
#include "threads.h"
#include "winograd.h"

namespace foveal {
namespace {

constexpr int COLOURS = 3;

// Floats that start on a line of the cache and are 0 at first.
class Buffer {
 public:
  void make(int64_t size) {
    data_.reset(static_cast<float*>(::operator new(size * sizeof(float), ALIGNED)));
    std::memset(data_.get(), 0, size * sizeof(float));
  }
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t ALIGNED{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, ALIGNED); }
  };
  std::unique_ptr<float, Free> data_;
};

struct Layer {
  int64_t in, out;     // channels, out rounded up to whole vectors
  float slope;         // 1 is no activation
  Buffer weight, bias; // first layer: (3·9, out); others: (36, in, out)
};

}  // namespace

class Chain {
 public:
  Chain(int64_t layers, const int64_t* widths, const float* const* weights, const float* const* biases,
        const float* slopes, int64_t scale, int64_t base_side, const float* base)
      : layers_(layers), phases_(scale * scale), scale_(scale), base_side_(base_side) {
    for (int64_t l = 0; l < layers; ++l) {
      Layer& layer = layers_[l];
      layer.in = widths[l];
      layer.out = up(widths[l + 1], LANES);
      layer.slope = slopes[l];
      layer.bias.make(layer.out);
      std::copy_n(biases[l], widths[l + 1], layer.bias.get());
      if (l == 0)
        pack_direct(layer, weights[l], widths[l + 1]);
      else
        pack_tiles(layer, weights[l], layers_[l - 1].out, widths[l + 1]);
      if (l > 0) layer.in = layers_[l - 1].out;
      widest_ = std::max(widest_, layer.out);
    }
    // (s², k·k) to (k·k, phases in whole vectors)
    base_.make(base_side * base_side * layers_.back().out);
    for (int64_t p = 0; p < phases_; ++p)
      for (int64_t k = 0; k < base_side * base_side; ++k)
        base_.get()[k * layers_.back().out + p] = base[p * base_side * base_side + k];
  }

  int64_t margin() const { return static_cast<int64_t>(layers_.size()); }

  // One picture: bytes (h, w, 3) to (h', w', s², 3), or floats (3, h, w) to (3, s·h', s·w').
  void run(const void* in, bool bytes, int64_t height, int64_t width, void* out, int threads) {
    fit(height, width);
    const int64_t strips = strips_of(height - 2);  // of the first layer, which has most
    const int64_t tasks = static_cast<int64_t>(layers_.size() + 1) * strips;
    for (int64_t i = 0; i < tasks; ++i) done_[i].store(0, std::memory_order_relaxed);
    parallel(tasks, threads, [&](int64_t task) {
      const int64_t l = task / strips - 1, strip = task % strips;
      if (l < 0) {
        // What the first layer reads: 4 rows, and with the last strip whatever is left.
        const int64_t first = strip * TILE, last = strip == strips - 1 ? height : first + TILE;
        for (int64_t y = first; y < last; ++y) bring_row(in, bytes, y);
      } else if (strip * TILE < rows_of(l)) {
        if (l > 0) wait(l, strip - 1);
        wait(l, strip);
        wait(l, strip + 1);
        if (l == 0)
          first(strip);
        else
          tiles(l, strip, out, bytes);
      }
      done_[task].store(1, std::memory_order_release);
    });
  }

 private:
  int64_t rows_of(int64_t l) const { return height_ - 2 * (l + 1); }     // made by layer l
  int64_t columns_of(int64_t l) const { return width_ - 2 * (l + 1); }
  static int64_t strips_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

  // Waits for a strip of what layer l reads.
  void wait(int64_t l, int64_t strip) const {
    const int64_t strips = strips_of(height_ - 2);
    if (strip < 0 || strip >= strips) return;
    while (done_[l * strips + strip].load(std::memory_order_acquire) == 0) std::this_thread::yield();
  }

  void fit(int64_t height, int64_t width) {
    if (height == height_ && width == width_) return;
    height_ = height;
    width_ = width;
    plane_row_ = up(width + REACH + GROUP, LINE);
    planes_.make(COLOURS * plane_row_ * (up(height, TILE) + REACH));
    // A strip writes whole tiles and reads two pixels beyond them.
    row_ = (up(width, TILE) + CHUNK) * widest_ + LINE;
    for (auto& side : sides_) side.make(row_ * (up(height, TILE) + 2 * TILE));
    done_ = std::make_unique<std::atomic<char>[]>((layers_.size() + 1) * strips_of(height));
  }

  void pack_direct(Layer& layer, const float* weight, int64_t made) {
    layer.weight.make(COLOURS * 9 * layer.out);
    for (int64_t o = 0; o < made; ++o)
      for (int64_t k = 0; k < COLOURS * 9; ++k) layer.weight.get()[k * layer.out + o] = weight[o * COLOURS * 9 + k];
  }

  // (out, in, 3, 3) to (36, in, out): G w Gᵀ, in double since it is done once.
  void pack_tiles(Layer& layer, const float* weight, int64_t in, int64_t made) {
    static const double G[REACH][3] = {{1.0 / 4, 0, 0},
                                       {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                       {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                       {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                       {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                       {0, 0, 1}};
    layer.weight.make(POINTS * in * layer.out);
    for (int64_t o = 0; o < made; ++o)
      for (int64_t i = 0; i < layer.in; ++i)
        for (int y = 0; y < REACH; ++y)
          for (int x = 0; x < REACH; ++x) {
            double value = 0;
            for (int a = 0; a < 3; ++a)
              for (int b = 0; b < 3; ++b) value += G[y][a] * G[x][b] * weight[((o * layer.in + i) * 3 + a) * 3 + b];
            layer.weight.get()[((y * REACH + x) * in + i) * layer.out + o] = static_cast<float>(value);
          }
  }

  void bring_row(const void* in, bool bytes, int64_t y) {
    const int64_t plane = plane_row_ * (up(height_, TILE) + REACH);
    for (int c = 0; c < COLOURS; ++c) {
      float* to = planes_.get() + c * plane + y * plane_row_;
      if (bytes) {
        const uint8_t* from = static_cast<const uint8_t*>(in) + y * width_ * COLOURS + c;
        for (int64_t x = 0; x < width_; ++x) to[x] = from[x * COLOURS] * (1.0f / 255);
      } else {
        std::copy_n(static_cast<const float*>(in) + (c * height_ + y) * width_, width_, to);
      }
    }
  }

  // Strip of the first layer: 27 products a pixel and channel.
  void first(int64_t strip) {
    const Layer& layer = layers_[0];
    const int64_t bottom = std::min((strip + 1) * TILE, rows_of(0));
    for (int64_t y = strip * TILE; y < bottom; ++y) {
      float* to = sides_[0].get() + y * row_;
      for (int64_t v = 0; v < layer.out;) {
        if (v + 2 * LANES <= layer.out) {
          for (int64_t x = 0; x < columns_of(0); x += GROUP) direct<2>(layer, y, x, v, to + x * layer.out + v);
          v += 2 * LANES;
        } else {
          for (int64_t x = 0; x < columns_of(0); x += GROUP) direct<1>(layer, y, x, v, to + x * layer.out + v);
          v += LANES;
        }
      }
      clear(to, columns_of(0), layer.out);
    }
    if (bottom == rows_of(0)) clear_below(sides_[0].get(), bottom);
  }

  template <int VECS>
  void direct(const Layer& layer, int64_t y, int64_t x, int64_t v, float* to) const {
    const int64_t plane = plane_row_ * (up(height_, TILE) + REACH);
    Vec sum[GROUP][VECS];
    for (int t = 0; t < GROUP; ++t)
      for (int i = 0; i < VECS; ++i) sum[t][i] = load(layer.bias.get() + v + i * LANES);
    for (int k = 0; k < COLOURS * 9; ++k) {
      const float* from = planes_.get() + k / 9 * plane + (y + k % 9 / 3) * plane_row_ + x + k % 3;
      Vec row[VECS];
      for (int i = 0; i < VECS; ++i) row[i] = load(layer.weight.get() + k * layer.out + v + i * LANES);
#pragma GCC unroll 16
      for (int t = 0; t < GROUP; ++t) {
        const Vec value = fill(from[t]);
        for (int i = 0; i < VECS; ++i) sum[t][i] += value * row[i];
      }
    }
    for (int t = 0; t < GROUP; ++t)
      for (int i = 0; i < VECS; ++i) store(to + t * layer.out + i * LANES, leaky(sum[t][i], layer.slope));
  }

  // Pixels that a tile reads beyond the end of a row, and rows below the last, are 0: a tile mixes all that it reads,
  // and what lay there before would change the last bits.
  void clear(float* row, int64_t columns, int64_t channels) const {
    std::fill(row + columns * channels, row + std::min(row_, (up(columns, TILE) + TILE) * channels), 0.0f);
  }
  void clear_below(float* side, int64_t rows) const {
    std::fill(side + rows * row_, side + (up(rows, TILE) + TILE) * row_, 0.0f);
  }

  // Strip of another layer.
  void tiles(int64_t l, int64_t strip, void* out, bool bytes) {
    const Layer& layer = layers_[l];
    const bool last = l + 1 == static_cast<int64_t>(layers_.size());
    const float* from = sides_[(l - 1) % 2].get() + strip * TILE * row_;
    float* to = sides_[l % 2].get() + strip * TILE * row_;
    const int64_t rows = std::min<int64_t>(TILE, rows_of(l) - strip * TILE), columns = columns_of(l);
    const int64_t count = (columns + TILE - 1) / TILE;
    const int64_t point_in = CHUNK * layer.in + LINE, point_out = CHUNK * layer.out + LINE;
    static thread_local std::vector<float> room;
    room.resize(POINTS * (point_in + point_out) + TILE * CHUNK * TILE * layer.out + 2 * LINE);
    float* base = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
    float* made = base + POINTS * point_in;
    float* detail = made + POINTS * point_out;
    for (int64_t begin = 0; begin < count; begin += CHUNK) {
      const int64_t here = std::min<int64_t>(CHUNK, count - begin), full = up(here, GROUP);
      for (int64_t t = 0; t < here; ++t)
        points_in(from + (begin + t) * TILE * layer.in, row_, layer.in, base + t * layer.in, point_in,
                  [](Vec x) { return x; });
      products(base, point_in, layer.weight.get(), made, point_out, full, layer.in, layer.out);
      if (last) {
        for (int64_t t = 0; t < here; ++t)
          pixels_out(layer, made + t * layer.out, point_out, detail + t * TILE * layer.out, CHUNK * TILE * layer.out);
        const int64_t left = begin * TILE, right = std::min(columns, left + here * TILE);
        for (int64_t y = 0; y < rows; ++y)
          finish(strip * TILE + y, left, right, detail + y * CHUNK * TILE * layer.out, out, bytes);
      } else {
        for (int64_t t = 0; t < here; ++t)
          pixels_out(layer, made + t * layer.out, point_out, to + (begin + t) * TILE * layer.out, row_);
      }
    }
    if (last) return;
    for (int64_t y = 0; y < rows; ++y) clear(to + y * row_, columns, layer.out);
    if (strip * TILE + rows == rows_of(l)) clear_below(sides_[l % 2].get(), rows_of(l));
  }

  static void pixels_out(const Layer& layer, const float* from, int64_t point, float* to, int64_t row) {
    points_out(from, point, layer.out, [&](int64_t v) {
      return [=, bias = load(layer.bias.get() + v), slope = layer.slope, out = layer.out](int y, int x, Vec pixel) {
        store(to + y * row + x * out + v, leaky(pixel + bias, slope));
      };
    });
  }

  // Row y of the output's blocks, [left, right): base of each colour and the detail that all colours share.
  void finish(int64_t y, int64_t left, int64_t right, const float* detail, void* out, bool bytes) const {
    constexpr int PIXELS = 4;
    const int64_t width = layers_.back().out, plane = plane_row_ * (up(height_, TILE) + REACH);
    const int64_t skip = margin() - base_side_ / 2, columns = width_ - 2 * margin(), rows = height_ - 2 * margin();
    alignas(64) float colour[PIXELS][COLOURS][64];
    for (int64_t x = left; x < right; x += PIXELS) {
      for (int64_t v = 0; v < width; v += LANES) {
        Vec sum[PIXELS][COLOURS];
        for (int i = 0; i < PIXELS; ++i)
          for (auto& s : sum[i]) s = load(detail + (x - left + i) * width + v);
        const float* weight = base_.get() + v;
        for (int64_t dy = 0; dy < base_side_; ++dy) {
          const float* from = planes_.get() + (y + skip + dy) * plane_row_ + x + skip;
          for (int64_t dx = 0; dx < base_side_; ++dx, ++from, weight += width) {
            const Vec tap = load(weight);
#pragma GCC unroll 4
            for (int i = 0; i < PIXELS; ++i)
              for (int c = 0; c < COLOURS; ++c) sum[i][c] += fill(from[c * plane + i]) * tap;
          }
        }
        for (int i = 0; i < PIXELS; ++i)
          for (int c = 0; c < COLOURS; ++c) store(colour[i][c] + v, sum[i][c]);
      }
      for (int64_t i = 0; i < std::min<int64_t>(PIXELS, right - x); ++i) {
        if (bytes)
          put_bytes(colour[i], static_cast<uint8_t*>(out) + (y * columns + x + i) * phases_ * COLOURS);
        else
          put_floats(colour[i], static_cast<float*>(out), y, x + i, rows, columns);
      }
    }
  }

  void put_bytes(const float (*colour)[64], uint8_t* to) const {
    alignas(64) int32_t packed[64];
    const int64_t phases = phases_;
    for (int64_t v = 0; v < phases; v += LANES) {
      IntVec word{};
      for (int c = 0; c < COLOURS; ++c) {
        // Adding 2^23 rounds to an integer, halves to even, that then stands in the low bits.
        const Vec level = smaller(fill(255.0f), larger(Vec{}, load(colour[c] + v) * 255.0f)) + 8388608.0f;
        IntVec bits;
        std::memcpy(&bits, &level, sizeof bits);
        word |= (bits & 255) << (8 * c);
      }
      std::memcpy(packed + v, &word, sizeof word);
    }
    // Four bytes at a time, of which the next ones overwrite the last; what follows the block is not ours.
    for (int64_t p = 0; p + 1 < phases; ++p) std::memcpy(to + p * COLOURS, packed + p, 4);
    std::memcpy(to + (phases - 1) * COLOURS, packed + phases - 1, COLOURS);
  }

  void put_floats(const float (*colour)[64], float* to, int64_t y, int64_t x, int64_t rows, int64_t columns) const {
    for (int c = 0; c < COLOURS; ++c)
      for (int64_t i = 0; i < scale_; ++i)
        std::copy_n(colour[c] + i * scale_, scale_,
                    to + ((c * rows + y) * scale_ + i) * columns * scale_ + x * scale_);
  }

  std::vector<Layer> layers_;
  int64_t phases_, scale_, base_side_, widest_ = 0;
  Buffer base_;
  // For pictures of one size.
  int64_t height_ = 0, width_ = 0, plane_row_ = 0, row_ = 0;
  Buffer planes_, sides_[2];
  std::unique_ptr<std::atomic<char>[]> done_;
};

}  // namespace foveal

extern "C" {

// widths: channels of the picture (3), of each layer, and last s²; weights (out, in, 3, 3); base (s², side, side).
// Null when there is no memory.
foveal::Chain* foveal_chain_make(int64_t layers, const int64_t* widths, const float* const* weights,
                                 const float* const* biases, const float* slopes, int64_t scale, int64_t base_side,
                                 const float* base) {
  try {
    return new foveal::Chain(layers, widths, weights, biases, slopes, scale, base_side, base);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// 0, or 1 when there is no memory. Not for two callers of one chain at a time.
int foveal_chain_run(foveal::Chain* chain, const void* in, int bytes, int64_t height, int64_t width, void* out,
                     int threads) {
  try {
    chain->run(in, bytes != 0, height, width, out, threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

void foveal_chain_free(foveal::Chain* chain) { delete chain; }
}
