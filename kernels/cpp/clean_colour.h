// Colour cleaned at the small size, before the linear upsampler reads it: a filter that takes noise out of Cb and Cr, and
// what the network adds to them.
//
//     clean = x_0 + mix · (filter * x_0) + colours · chroma
#pragma once

#include <algorithm>

#include "pack.h"
#include "simd.h"

namespace foveal {

constexpr int CHROMA = 2;

// filter (side, side), its side odd; mix (3, 3); colours (3, 2). A side of 0 if there is none.
struct Colour {
  int64_t side;
  const float *filter, *mix, *colours;
};

class ColourFilter {
 public:
  explicit ColourFilter(const Colour& colour) : side_(colour.side) {
    if (side_ == 0) return;
    filter_.make(side_ * side_);
    std::copy_n(colour.filter, side_ * side_, filter_.get());
    std::copy_n(colour.mix, COLOURS * COLOURS, mix_);
    std::copy_n(colour.colours, COLOURS * CHROMA, colours_);
  }

  int64_t side() const { return side_; }

  // LANES pixels of the three colours, to `clean` of the picture's layout: a stride of `plane` floats between colours and
  // `pitch` between rows. `chroma` is that of the first pixel, `width` floats before the next one's.
  void clean(const float* picture, int64_t plane, int64_t pitch, const float* chroma, int64_t width,
             float* clean) const {
    Vec filtered[COLOURS] = {};
    const float* corner = picture - side_ / 2 * (pitch + 1);
    for (int64_t dy = 0; dy < side_; ++dy)
      for (int64_t dx = 0; dx < side_; ++dx) {
        const Vec tap = fill(filter_.get()[dy * side_ + dx]);
        for (int c = 0; c < COLOURS; ++c) filtered[c] += load(corner + c * plane + dy * pitch + dx) * tap;
      }
    float made[CHROMA][LANES];
    for (int t = 0; t < LANES; ++t)
      for (int i = 0; i < CHROMA; ++i) made[i][t] = chroma[t * width + i];
    for (int c = 0; c < COLOURS; ++c) {
      Vec sum = load(picture + c * plane);
      for (int k = 0; k < COLOURS; ++k) sum += filtered[k] * mix_[c * COLOURS + k];
      for (int i = 0; i < CHROMA; ++i) sum += load(made[i]) * colours_[c * CHROMA + i];
      store(clean + c * plane, sum);
    }
  }

 private:
  int64_t side_;
  Buffer<float> filter_;
  float mix_[COLOURS * COLOURS] = {}, colours_[COLOURS * CHROMA] = {};
};

}  // namespace foveal
