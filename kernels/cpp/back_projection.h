// Back-projection: the residual of the result against the picture, one value per pixel, from the picture and the detail.
//
//     residual = small * x_0 + reduce * detail
//
// It is added back to the detail where the result is written, in conv_chain.cpp.
#pragma once

#include <algorithm>

#include "pack.h"
#include "simd.h"

namespace foveal {

// Kernels of back-projection, with odd sides: small (3, base side + side - 1, same), reduce and enlarge (s², side, side).
struct Back {
  int64_t side;
  const float *small, *reduce, *enlarge;
};

class BackProjection {
 public:
  // width: channels of the detail, rounded up to whole vectors.
  BackProjection(const Back& back, int64_t phases, int64_t width, int64_t base_side)
      : side_(back.side), small_side_(base_side + back.side - 1), width_(width) {
    if (side_ == 0) return;
    pack_phases(reduce_, back.reduce, side_, phases, width);
    pack_phases(enlarge_, back.enlarge, side_, phases, width);
    small_.make(COLOURS * small_side_ * small_side_);
    std::copy_n(back.small, COLOURS * small_side_ * small_side_, small_.get());
  }

  int64_t side() const { return side_; }  // 0 if there is none
  int64_t small_side() const { return small_side_; }
  const float* enlarge() const { return enlarge_.get(); }

  // LANES pixels of the residual. `picture` is the corner of the input of `small`, with a stride of `plane` floats between
  // colours and `pitch` between rows; `detail` is that of `reduce`. The detail's vectors of phases are summed at the end.
  Vec residual(const float* picture, int64_t plane, int64_t pitch, const float* detail, int64_t detail_pitch) const {
    Vec total{};
    const float* weight = small_.get();
    for (int64_t c = 0; c < COLOURS; ++c)
      for (int64_t dy = 0; dy < small_side_; ++dy) {
        const float* from = picture + c * plane + dy * pitch;
        for (int64_t dx = 0; dx < small_side_; ++dx) total += load(from + dx) * *weight++;
      }
    Vec sum[LANES] = {};
    weight = reduce_.get();
    for (int64_t dy = 0; dy < side_; ++dy) {
      const float* from = detail + dy * detail_pitch;
      for (int64_t dx = 0; dx < side_ * width_; dx += LANES, weight += LANES) {
        const Vec tap = load(weight);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) sum[i] += load(from + dx + i * width_) * tap;
      }
    }
    transpose(sum);
    for (int i = 0; i < LANES; ++i) total += sum[i];
    return total;
  }

 private:
  int64_t side_, small_side_, width_;
  Buffer<float> small_, reduce_, enlarge_;
};

}  // namespace foveal
