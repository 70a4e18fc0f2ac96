// Rows of an int8 layer: sums of products (int8_dot.h), their scale, the bias and the slope.
#pragma once

#include "int8_dot.h"
#include "pack.h"
#include "simd.h"
#include "winograd.h"

namespace foveal {

// One row, VECS vectors of channels from channel v on; the input has a row stride of `pitch` bytes.
template <int VECS, class At>
void int8_row(const Layer& layer, const uint8_t* from, int64_t pitch, int64_t y, int64_t columns, int64_t v,
              const At& at) {
  struct {
    Vec factor[VECS], bias[VECS];
  } line;
  for (int i = 0; i < VECS; ++i) {
    line.factor[i] = load(layer.factor.get() + v + i * LANES);
    line.bias[i] = load(layer.bias.get() + v + i * LANES);
  }
  const int32_t* weight = layer.words.get() + v * 9 * layer.in / WORD;
  for (int64_t x = 0; x < columns; x += ACROSS)
    int8_dot<VECS>(from + y * pitch + x * layer.in, pitch, layer.in, weight,
               [=, slope = layer.slope, put = at(y, x, v)](int t, int i, Vec sum) {
                 put(t, i, leaky(sum * line.factor[i] + line.bias[i], slope));
               });
}

// at(row, column, first channel) returns the consumer of a block's values, put(pixel, vector, values). A block of
// weights stays in cache while all rows are computed.
template <class At>
void int8_rows(const Layer& layer, const uint8_t* from, int64_t pitch, int64_t rows, int64_t columns, const At& at) {
  for (int64_t v = 0; v < layer.out;) {
    const bool two = v + 2 * LANES <= layer.out;
    for (int64_t y = 0; y < rows; ++y) {
      if (two)
        int8_row<2>(layer, from, pitch, y, columns, v, at);
      else
        int8_row<1>(layer, from, pitch, y, columns, v, at);
    }
    v += two ? 2 * LANES : LANES;
  }
}

}  // namespace foveal
