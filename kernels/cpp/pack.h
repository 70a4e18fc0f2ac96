// The weights of a chain of convolutions in the layout of its kernels; packed once.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "int8_dot.h"
#include "simd.h"
#include "winograd.h"

namespace foveal {

constexpr int COLOURS = 3;

// A zero-initialised array aligned to a cache line.
template <class T>
class Buffer {
 public:
  void make(int64_t size) {
    data_.reset(static_cast<T*>(::operator new(size * sizeof(T), ALIGNED)));
    std::memset(data_.get(), 0, size * sizeof(T));
  }
  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t ALIGNED{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, ALIGNED); }
  };
  std::unique_ptr<T, Free> data_;
};

struct Layer {
  int64_t in, out;             // channels, out rounded up to whole vectors
  float slope;                 // 1 means no activation
  Buffer<float> weight, bias;  // first layer: (3·9, out); others: (36, in, out)
  // For an int8 chain:
  Buffer<int32_t> words;  // not in the first layer: weights, (blocks of vectors, 3, 3·in / 4, block), four per word
  Buffer<float> factor;   // scale of the sums of products, in quantisation steps of the layer's output
  Buffer<float> zero;     // zero point of the output, not necessarily an integer
};

// Parameters of an int8 chain, besides the biases: weights (out, in, 3, 3) of all layers but the first; scales of their
// channels; for the output of all layers but the last: a quantisation step, and a zero point per channel. The biases
// compensate for the zero points.
struct Levels {
  const int8_t* const* weights;
  const float* const* scales;
  const float* steps;
  const float* const* zeros;
};

// (s², side·side) to (side·side, phases rounded up to `width`).
inline void pack_phases(Buffer<float>& to, const float* from, int64_t side, int64_t phases, int64_t width) {
  const int64_t taps = side * side;
  to.make(taps * width);
  for (int64_t p = 0; p < phases; ++p)
    for (int64_t k = 0; k < taps; ++k) to.get()[k * width + p] = from[p * taps + k];
}

inline void pack_direct(Layer& layer, const float* weight, int64_t made) {
  layer.weight.make(COLOURS * 9 * layer.out);
  for (int64_t o = 0; o < made; ++o)
    for (int64_t k = 0; k < COLOURS * 9; ++k) layer.weight.get()[k * layer.out + o] = weight[o * COLOURS * 9 + k];
}

// (out, in, 3, 3) to (36, in, out): G w Gᵀ, in double since it is computed only once.
inline void pack_winograd(Layer& layer, const float* weight, int64_t in, int64_t made) {
  static const double G[REACH][3] = {{1.0 / 4, 0, 0},
                                     {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                     {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                     {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                     {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                     {0, 0, 1}};
  layer.weight.make(POINTS * layer.in * layer.out);
  for (int64_t o = 0; o < made; ++o)
    for (int64_t i = 0; i < in; ++i)
      for (int y = 0; y < REACH; ++y)
        for (int x = 0; x < REACH; ++x) {
          double value = 0;
          for (int a = 0; a < 3; ++a)
            for (int b = 0; b < 3; ++b) value += G[y][a] * G[x][b] * weight[((o * in + i) * 3 + a) * 3 + b];
          layer.weight.get()[((y * REACH + x) * layer.in + i) * layer.out + o] = static_cast<float>(value);
        }
}

// (out, in, 3, 3) bytes to words.
inline void pack_int8(Layer& layer, const int8_t* weight, const float* scales, int64_t in, int64_t made, float step) {
  const int64_t row = 3 * layer.in / WORD;
  layer.words.make(3 * row * layer.out);
  layer.factor.make(layer.out);
  for (int64_t o = 0; o < made; ++o) {
    const int64_t block = o / (2 * LANES) * 2 * LANES, side = std::min<int64_t>(2 * LANES, layer.out - block);
    int8_t* to = reinterpret_cast<int8_t*>(layer.words.get() + block * 3 * row);
    for (int64_t i = 0; i < in; ++i)
      for (int64_t k = 0; k < 9; ++k) {
        const int64_t at = k % 3 * layer.in + i;  // in the row of three pixels
        to[((k / 3 * row + at / WORD) * side + o - block) * WORD + at % WORD] = weight[(o * in + i) * 9 + k];
      }
    layer.factor.get()[o] = step * scales[o];
  }
}

// The layer's output is in quantisation steps, which commutes with its slope.
inline void count_in_steps(Layer& layer, float step, const float* zeros, int64_t made) {
  layer.zero.make(layer.out);
  std::copy_n(zeros, made, layer.zero.get());
  const auto divide = [step](const Buffer<float>& numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) numbers.get()[i] /= step;
  };
  divide(layer.bias, layer.out);
  if (layer.factor.get() == nullptr)  // the first layer
    divide(layer.weight, COLOURS * 9 * layer.out);
  else
    divide(layer.factor, layer.out);
}

// The layers of a chain. weights: those of all layers, or of the first only if there are levels.
inline std::vector<Layer> pack_layers(int64_t count, const int64_t* widths, const float* const* weights,
                                      const float* const* biases, const float* slopes, const Levels* levels) {
  std::vector<Layer> layers(count);
  for (int64_t l = 0; l < count; ++l) {
    Layer& layer = layers[l];
    layer.in = l == 0 ? widths[0] : layers[l - 1].out;
    layer.out = up(widths[l + 1], LANES);
    layer.slope = slopes[l];
    layer.bias.make(layer.out);
    std::copy_n(biases[l], widths[l + 1], layer.bias.get());
    if (l == 0)
      pack_direct(layer, weights[0], widths[1]);
    else if (levels == nullptr)
      pack_winograd(layer, weights[l], widths[l], widths[l + 1]);
    else
      pack_int8(layer, levels->weights[l - 1], levels->scales[l - 1], widths[l], widths[l + 1], levels->steps[l - 1]);
    if (levels != nullptr && l + 1 < count) count_in_steps(layer, levels->steps[l], levels->zeros[l], widths[l + 1]);
  }
  return layers;
}

}  // namespace foveal
