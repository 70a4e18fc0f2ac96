// A plain super-resolution network in one call: 3×3 convolutions without padding, each with a leaky slope, and a parallel
// linear upsampler.
//
//     x_0     = the picture, 3 colours in [0, 1]
//     x_(l+1) = leaky(W_l * x_l + b_l, slope_l)           l < layers - 1
//     detail  = W_last * x_last + b_last                  s² phases
//     out     = shuffle(base * x_0 of each colour + detail)
//
// and, with back-projection, between the last two
//
//     residual = small * x_0 + reduce * detail            one value per pixel
//     detail   = detail + enlarge * residual
//
// A network that cleans colour has no back-projection; its last layer makes two phases more, and base reads
//
//     clean = x_0 + mix · (filter * x_0) + colours · (the two more phases)
//
// instead of the picture (clean_colour.h).
//
// All layers but the first use Winograd's F(4×4, 3×3): 16 pixels with 36 products instead of 144. Activations are stored
// channels-last, so both transforms are sums of whole vectors, with 36 matrix products (tiles × channels) · (channels ×
// channels) between them. The result is never stored as floats: base is added to a few pixels of detail, which are
// rounded to bytes at once.
//
// An int8 chain has the same first layer, followed by
//
//     x_(l+1) = round(zero_l + leaky(W_l * x_l + b_l, slope_l) / step_l), 0 to 255,
//
// with 8-bit weights, a scale per channel, and a zero point per channel, which the next bias compensates: see int8_dot.h.
// Its last layer outputs floats again.
//
// Work is split into strips of 4 rows of one layer. Strips are started in order; each waits for the strips that it reads
// and for those that read what it overwrites, so there are no barriers and any number of threads makes progress.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "back_projection.h"
#include "clean_colour.h"
#include "int8_dot.h"
#include "int8_rows.h"
#include "pack.h"
#include "simd.h"
#include "threads.h"
#include "winograd.h"

namespace foveal {

class Chain {
 public:
  // weights: those of all layers, or of the first only if there are levels.
  Chain(int64_t layers, const int64_t* widths, const float* const* weights, const float* const* biases,
        const float* slopes, int64_t scale, int64_t base_side, const float* base, const Back& back,
        const Colour& colour, const Levels* levels)
      : layers_(pack_layers(layers, widths, weights, biases, slopes, levels)),
        int8_(levels != nullptr),
        phases_(scale * scale),
        phase_width_(up(phases_, LANES)),
        scale_(scale),
        base_side_(base_side),
        back_(back, phases_, layers_.back().out, base_side),
        colour_(colour) {
    for (const Layer& layer : layers_) widest_ = std::max(widest_, layer.out);
    pack_phases(base_, base, base_side, phases_, phase_width_);
  }

  // One picture: bytes (h, w, 3) to (h', w', s², 3), or floats (3, h, w) to (3, s·h', s·w').
  void run(const void* in, bool bytes, int64_t height, int64_t width, void* out, int threads) {
    resize(height, width);
    const int64_t strips = strips_of(height - 2);  // strips of the first layer, which has most
    const int64_t tasks = (steps() + 1) * strips;
    for (int64_t i = 0; i < tasks; ++i) done_[i].store(0, std::memory_order_relaxed);
    parallel(tasks, threads, [&](int64_t task) {
      // Threads that wait for a strip must terminate even if memory ran out while computing it.
      const Mark mark{done_[task]};
      make(task / strips - 1, task % strips, in, bytes, out);
    });
  }

 private:
  struct Mark {
    std::atomic<char>& done;
    ~Mark() { done.store(1, std::memory_order_release); }
  };

  // Steps: the layers, the residual of back-projection or the cleaned colours if there are any, the result.
  int64_t depth() const { return static_cast<int64_t>(layers_.size()); }
  int64_t steps() const { return depth() + (back_.side() == 0 && colour_.side() == 0 ? 1 : 2); }
  // Pixels that the steps up to step l crop from each side.
  int64_t taken(int64_t l) const {
    if (l < depth()) return l + 1;
    if (colour_.side() != 0) return depth() + (l + 1 == steps() ? base_side_ / 2 : 0);
    return depth() + back_.side() / 2 * (l + 1 == steps() ? 2 : 1);
  }
  int64_t rows_of(int64_t l) const { return height_ - 2 * taken(l); }
  int64_t columns_of(int64_t l) const { return width_ - 2 * taken(l); }
  static int64_t strips_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

  // A strip of step l, or of the picture before the first.
  void make(int64_t l, int64_t strip, const void* in, bool bytes, void* out) {
    if (l < 0) {
      // Input of the first layer: 4 rows, and with the last strip all remaining rows.
      const int64_t first = strip * TILE, last = strip == strips_of(height_ - 2) - 1 ? height_ : first + TILE;
      for (int64_t y = first; y < last; ++y) load_row(in, bytes, y);
      return;
    }
    if (strip * TILE >= rows_of(l)) return;
    if (l > 0) wait(l, strip - 1);
    wait(l, strip);
    wait(l, strip + 1);
    if (l + 1 == steps())
      output_strip(strip, out, bytes);
    else if (l == depth() && colour_.side() != 0)
      colour_strip(strip);
    else if (l == depth())
      residual_strip(strip);
    else if (l == 0)
      first_strip(strip);
    else if (int8_)
      int8_strip(l, strip);
    else
      winograd_strip(l, strip);
  }

  // Waits for a strip of the input of step l.
  void wait(int64_t l, int64_t strip) const {
    const int64_t strips = strips_of(height_ - 2);
    if (strip < 0 || strip >= strips) return;
    while (done_[l * strips + strip].load(std::memory_order_acquire) == 0) std::this_thread::yield();
  }

  void resize(int64_t height, int64_t width) {
    if (height == height_ && width == width_) return;
    height_ = width_ = 0;  // no valid size, in case memory runs out
    plane_row_ = up(width + REACH + GROUP, LINE);
    planes_.make(COLOURS * plane_row_ * (up(height, TILE) + REACH));
    cleaned_.make(colour_.side() == 0 ? 0 : COLOURS * plane_row_ * (up(height, TILE) + REACH));
    // A strip writes whole tiles and reads two pixels beyond them.
    row_ = (up(width, TILE) + CHUNK) * widest_ + LINE;
    const int64_t size = row_ * (up(height, TILE) + 2 * TILE);
    for (auto& side : activations_) side.make(int8_ ? 0 : size);
    for (auto& side : int8_activations_) side.make(int8_ ? size : 0);
    detail_row_ = int8_ ? (up(width, TILE) + CHUNK) * layers_.back().out + LINE : row_;
    detail_.make(int8_ ? detail_row_ * (up(height, TILE) + 2 * TILE) : 0);
    residual_row_ = up(width, LANES) + LINE;
    residual_.make(back_.side() == 0 ? 0 : residual_row_ * up(height, TILE));
    done_ = std::make_unique<std::atomic<char>[]>((steps() + 1) * strips_of(height));
    height_ = height;
    width_ = width;
  }

  int64_t plane() const { return plane_row_ * (up(height_, TILE) + REACH); }
  // What base reads: the picture, or its cleaned colours where it has them.
  const float* read_by_base() const { return colour_.side() == 0 ? planes_.get() : cleaned_.get(); }
  // Output of the last layer: floats, s² phases per pixel, and two more where colour is cleaned.
  float* detail() const { return int8_ ? detail_.get() : activations_[(depth() - 1) % 2].get(); }

  void load_row(const void* in, bool bytes, int64_t y) {
    for (int c = 0; c < COLOURS; ++c) {
      float* to = planes_.get() + c * plane() + y * plane_row_;
      if (bytes) {
        const uint8_t* from = static_cast<const uint8_t*>(in) + y * width_ * COLOURS + c;
        for (int64_t x = 0; x < width_; ++x) to[x] = from[x * COLOURS] * (1.0f / 255);
      } else {
        std::copy_n(static_cast<const float*>(in) + (c * height_ + y) * width_, width_, to);
      }
    }
  }

  // Strip of the first layer: 27 products per pixel and channel.
  void first_strip(int64_t strip) {
    const Layer& layer = layers_[0];
    const int64_t bottom = std::min((strip + 1) * TILE, rows_of(0));
    for (int64_t y = strip * TILE; y < bottom; ++y) {
      if (int8_) {
        uint8_t* to = int8_activations_[0].get() + y * row_;
        first_row(y, [to, zero = layer.zero.get()](int64_t at, int64_t channel, Vec value) {
          store_bytes(to + at, value + load(zero + channel));
        });
      } else {
        float* to = activations_[0].get() + y * row_;
        first_row(y, [to](int64_t at, int64_t, Vec value) { store(to + at, value); });
        clear_row_end(to, columns_of(0), layer.out);
      }
    }
    if (!int8_ && bottom == rows_of(0)) clear_rows_below(activations_[0].get(), bottom);
  }

  // put(position in the row, channel, values)
  template <class Put>
  void first_row(int64_t y, const Put& put) const {
    const Layer& layer = layers_[0];
    for (int64_t v = 0; v < layer.out;) {
      const bool two = v + 2 * LANES <= layer.out;
      for (int64_t x = 0; x < columns_of(0); x += GROUP) {
        if (two)
          direct<2>(layer, y, x, v, put);
        else
          direct<1>(layer, y, x, v, put);
      }
      v += two ? 2 * LANES : LANES;
    }
  }

  template <int VECS, class Put>
  void direct(const Layer& layer, int64_t y, int64_t x, int64_t v, const Put& put) const {
    Vec sum[GROUP][VECS];
    for (int t = 0; t < GROUP; ++t)
      for (int i = 0; i < VECS; ++i) sum[t][i] = load(layer.bias.get() + v + i * LANES);
    for (int k = 0; k < COLOURS * 9; ++k) {
      const float* from = planes_.get() + k / 9 * plane() + (y + k % 9 / 3) * plane_row_ + x + k % 3;
      Vec row[VECS];
      for (int i = 0; i < VECS; ++i) row[i] = load(layer.weight.get() + k * layer.out + v + i * LANES);
#pragma GCC unroll 16
      for (int t = 0; t < GROUP; ++t) {
        const Vec value = fill(from[t]);
        for (int i = 0; i < VECS; ++i) sum[t][i] += value * row[i];
      }
    }
    for (int t = 0; t < GROUP; ++t)
      for (int i = 0; i < VECS; ++i) {
        const int64_t channel = v + i * LANES;
        put((x + t) * layer.out + channel, channel, leaky(sum[t][i], layer.slope));
      }
  }

  // Pixels that a tile reads beyond the end of a row, and rows below the last, are 0: a tile mixes all its inputs, and
  // leftover values would change the last bits.
  void clear_row_end(float* row, int64_t columns, int64_t channels) const {
    std::fill(row + columns * channels, row + std::min(row_, (up(columns, TILE) + TILE) * channels), 0.0f);
  }
  void clear_rows_below(float* side, int64_t rows) const {
    std::fill(side + rows * row_, side + (up(rows, TILE) + TILE) * row_, 0.0f);
  }

  // Strip of a later layer.
  void winograd_strip(int64_t l, int64_t strip) {
    const Layer& layer = layers_[l];
    const float* from = activations_[(l - 1) % 2].get() + strip * TILE * row_;
    float* to = activations_[l % 2].get() + strip * TILE * row_;
    const int64_t rows = std::min<int64_t>(TILE, rows_of(l) - strip * TILE), columns = columns_of(l);
    const int64_t count = (columns + TILE - 1) / TILE;
    const int64_t point_in = CHUNK * layer.in + LINE, point_out = CHUNK * layer.out + LINE;
    static thread_local std::vector<float> room;
    room.resize(POINTS * (point_in + point_out) + LINE);
    float* base = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
    float* made = base + POINTS * point_in;
    for (int64_t begin = 0; begin < count; begin += CHUNK) {
      const int64_t here = std::min<int64_t>(CHUNK, count - begin), full = up(here, GROUP);
      for (int64_t t = 0; t < here; ++t)
        points_in(from + (begin + t) * TILE * layer.in, row_, layer.in, base + t * layer.in, point_in,
                  [](Vec x) { return x; });
      products(base, point_in, layer.weight.get(), made, point_out, full, layer.in, layer.out);
      for (int64_t t = 0; t < here; ++t)
        pixels_out(layer, made + t * layer.out, point_out, to + (begin + t) * TILE * layer.out, row_);
    }
    for (int64_t y = 0; y < rows; ++y) clear_row_end(to + y * row_, columns, layer.out);
    if (strip * TILE + rows == rows_of(l)) clear_rows_below(activations_[l % 2].get(), rows_of(l));
  }

  // Strip of a later int8 layer. Values beyond the end of a row only affect pixels that are never used.
  void int8_strip(int64_t l, int64_t strip) {
    const Layer& layer = layers_[l];
    const uint8_t* from = int8_activations_[(l - 1) % 2].get() + strip * TILE * row_;
    const int64_t rows = std::min<int64_t>(TILE, rows_of(l) - strip * TILE), columns = columns_of(l);
    if (l + 1 < depth()) {
      uint8_t* to = int8_activations_[l % 2].get() + strip * TILE * row_;
      int8_rows(layer, from, row_, rows, columns, [&](int64_t y, int64_t x, int64_t v) {
        uint8_t* corner = to + y * row_ + x * layer.out + v;
        return [corner, zero = layer.zero.get() + v, out = layer.out](int t, int i, Vec value) {
          store_bytes(corner + t * out + i * LANES, value + load(zero + i * LANES));
        };
      });
    } else {
      float* to = detail() + strip * TILE * detail_row_;
      int8_rows(layer, from, row_, rows, columns, [&](int64_t y, int64_t x, int64_t v) {
        float* corner = to + y * detail_row_ + x * layer.out + v;
        return [corner, out = layer.out](int t, int i, Vec value) { store(corner + t * out + i * LANES, value); };
      });
    }
  }

  static void pixels_out(const Layer& layer, const float* from, int64_t point, float* to, int64_t row) {
    points_out(from, point, layer.out, [&](int64_t v) {
      return [=, bias = load(layer.bias.get() + v), slope = layer.slope, out = layer.out](int y, int x, Vec pixel) {
        store(to + y * row + x * out + v, leaky(pixel + bias, slope));
      };
    });
  }

  // Strip of the residual of back-projection, LANES pixels of a row at a time.
  void residual_strip(int64_t strip) const {
    const int64_t columns = columns_of(depth()), bottom = std::min((strip + 1) * TILE, rows_of(depth()));
    const int64_t skip = taken(depth()) - back_.small_side() / 2, width = layers_.back().out;
    for (int64_t y = strip * TILE; y < bottom; ++y)
      for (int64_t x = 0; x < columns; x += LANES)
        store(residual_.get() + y * residual_row_ + x,
              back_.residual(planes_.get() + (y + skip) * plane_row_ + x + skip, plane(), plane_row_,
                             detail() + y * detail_row_ + x * width, detail_row_));
  }

  // Strip of the cleaned colours, LANES pixels of a row at a time.
  void colour_strip(int64_t strip) const {
    const int64_t columns = columns_of(depth()), bottom = std::min((strip + 1) * TILE, rows_of(depth()));
    const int64_t skip = taken(depth()), width = layers_.back().out;
    for (int64_t y = strip * TILE; y < bottom; ++y)
      for (int64_t x = 0; x < columns; x += LANES) {
        const int64_t at = (y + skip) * plane_row_ + x + skip;
        colour_.clean(planes_.get() + at, plane(), plane_row_, detail() + y * detail_row_ + x * width + phases_, width,
                      cleaned_.get() + at);
      }
  }

  // Strip of the result's blocks: base of each colour plus the shared detail.
  void output_strip(int64_t strip, void* out, bool bytes) const {
    constexpr int PIXELS = 4;
    const int64_t last = steps() - 1, margin = taken(last), rows = rows_of(last), columns = columns_of(last);
    const int64_t width = layers_.back().out, skip = margin - base_side_ / 2, inward = margin - depth();
    const int64_t bottom = std::min((strip + 1) * TILE, rows);
    const float* picture = read_by_base();
    alignas(64) float colour[PIXELS][COLOURS][64];
    for (int64_t y = strip * TILE; y < bottom; ++y)
      for (int64_t x = 0; x < columns; x += PIXELS) {
        const float* detailed = detail() + (y + inward) * detail_row_ + (x + inward) * width;
        for (int64_t v = 0; v < phase_width_; v += LANES) {
          Vec shared[PIXELS];
          for (int i = 0; i < PIXELS; ++i) shared[i] = load(detailed + i * width + v);
          for (int64_t dy = 0; dy < back_.side(); ++dy) {
            const float* from = residual_.get() + (y + dy) * residual_row_ + x;
            for (int64_t dx = 0; dx < back_.side(); ++dx, ++from) {
              const Vec tap = load(back_.enlarge() + (dy * back_.side() + dx) * width + v);
#pragma GCC unroll 4
              for (int i = 0; i < PIXELS; ++i) shared[i] += fill(from[i]) * tap;
            }
          }
          Vec sum[PIXELS][COLOURS];
          for (int i = 0; i < PIXELS; ++i)
            for (auto& s : sum[i]) s = shared[i];
          const float* weight = base_.get() + v;
          for (int64_t dy = 0; dy < base_side_; ++dy) {
            const float* from = picture + (y + skip + dy) * plane_row_ + x + skip;
            for (int64_t dx = 0; dx < base_side_; ++dx, ++from, weight += phase_width_) {
              const Vec tap = load(weight);
#pragma GCC unroll 4
              for (int i = 0; i < PIXELS; ++i)
                for (int c = 0; c < COLOURS; ++c) sum[i][c] += fill(from[c * plane() + i]) * tap;
            }
          }
          for (int i = 0; i < PIXELS; ++i)
            for (int c = 0; c < COLOURS; ++c) store(colour[i][c] + v, sum[i][c]);
        }
        for (int64_t i = 0; i < std::min<int64_t>(PIXELS, columns - x); ++i) {
          if (bytes)
            store_pixel_bytes(colour[i], static_cast<uint8_t*>(out) + (y * columns + x + i) * phases_ * COLOURS);
          else
            store_pixel_floats(colour[i], static_cast<float*>(out), y, x + i, rows, columns);
        }
      }
  }

  void store_pixel_bytes(const float (*colour)[64], uint8_t* to) const {
    alignas(64) int32_t packed[64];
    const int64_t phases = phases_;
    for (int64_t v = 0; v < phases; v += LANES) {
      IntVec word{};
      for (int c = 0; c < COLOURS; ++c) {
        // Adding 2^23 rounds to an integer in the low bits, ties to even.
        const Vec level = smaller(fill(255.0f), larger(Vec{}, load(colour[c] + v) * 255.0f)) + 8388608.0f;
        IntVec bits;
        std::memcpy(&bits, &level, sizeof bits);
        word |= (bits & 255) << (8 * c);
      }
      std::memcpy(packed + v, &word, sizeof word);
    }
    // Four bytes at a time, the last overwritten by the next store; bytes after the block must not be touched.
    for (int64_t p = 0; p + 1 < phases; ++p) std::memcpy(to + p * COLOURS, packed + p, 4);
    std::memcpy(to + (phases - 1) * COLOURS, packed + phases - 1, COLOURS);
  }

  void store_pixel_floats(const float (*colour)[64], float* to, int64_t y, int64_t x, int64_t rows, int64_t columns) const {
    for (int c = 0; c < COLOURS; ++c)
      for (int64_t i = 0; i < scale_; ++i)
        std::copy_n(colour[c] + i * scale_, scale_,
                    to + ((c * rows + y) * scale_ + i) * columns * scale_ + x * scale_);
  }

  std::vector<Layer> layers_;
  bool int8_;
  int64_t phases_, phase_width_, scale_, base_side_, widest_ = 0;
  Buffer<float> base_;
  BackProjection back_;
  ColourFilter colour_;
  // Buffers for one picture size.
  int64_t height_ = 0, width_ = 0, plane_row_ = 0, row_ = 0, detail_row_ = 0, residual_row_ = 0;
  Buffer<float> planes_, cleaned_, activations_[2], detail_, residual_;
  Buffer<uint8_t> int8_activations_[2];
  std::unique_ptr<std::atomic<char>[]> done_;
};

}  // namespace foveal

extern "C" {

// widths: channels of the picture (3), of each layer, and finally s², or s² + 2 where colour is cleaned; weights
// (out, in, 3, 3); base (s², side, side); for back-projection see Back, for cleaned colours Colour, each with a side of 0
// if there is none. There are not both, and a base that reads cleaned colours has a side of at most 5. Returns null if
// memory ran out.
foveal::Chain* foveal_chain_build(int64_t layers, const int64_t* widths, const float* const* weights,
                                 const float* const* biases, const float* slopes, int64_t scale, int64_t base_side,
                                 const float* base, int64_t back_side, const float* small, const float* reduce,
                                 const float* enlarge, int64_t colour_side, const float* filter, const float* mix,
                                 const float* colours) {
  try {
    const foveal::Back back{back_side, small, reduce, enlarge};
    const foveal::Colour colour{colour_side, filter, mix, colours};
    return new foveal::Chain(layers, widths, weights, biases, slopes, scale, base_side, base, back, colour,
                             nullptr);
  } catch (...) {
    return nullptr;
  }
}

// The same for an int8 chain. `first`: weights of the first layer; for the others, bytes (out, in, 3, 3) and a scale per
// output channel; for the output of all layers but the last, a quantisation step and a zero point per channel.
foveal::Chain* foveal_chain_build_int8(int64_t layers, const int64_t* widths, const float* first,
                                      const int8_t* const* weights, const float* const* scales,
                                      const float* const* biases, const float* slopes, const float* steps,
                                      const float* const* zeros, int64_t scale, int64_t base_side, const float* base,
                                      int64_t back_side, const float* small, const float* reduce,
                                      const float* enlarge, int64_t colour_side, const float* filter,
                                      const float* mix, const float* colours) {
  try {
    const foveal::Levels levels{weights, scales, steps, zeros};
    const foveal::Back back{back_side, small, reduce, enlarge};
    const foveal::Colour colour{colour_side, filter, mix, colours};
    return new foveal::Chain(layers, widths, &first, biases, slopes, scale, base_side, base, back, colour,
                             &levels);
  } catch (...) {
    return nullptr;
  }
}

// Whether this library computes int8 products in fewer instructions than float products.
int foveal_has_dots() {
#if defined(__AVX512VNNI__) && FOVEAL_LANES == 16
  return 1;
#else
  return 0;
#endif
}

// Returns 0, or 1 if memory ran out. Not thread-safe for the same chain.
int foveal_chain_run(foveal::Chain* chain, const void* in, int bytes, int64_t height, int64_t width, void* out,
                     int threads) {
  return foveal::code_of([&] { chain->run(in, bytes != 0, height, width, out, threads); });
}

void foveal_chain_free(foveal::Chain* chain) { delete chain; }
}
