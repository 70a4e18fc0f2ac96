// Selective scan, forward and backward, along one or several routes.
//
// For route k, channel c and the t-th position p of the route:
//     delta = softplus(delta[k, c, p] + bias[k, c])
//     h_n   = exp(delta · A[k, c, n]) · h_n + delta · u[c, p] · B[k, g, n, p]
//     y     = sum_n C[k, g, n, p] · h_n + D[k, c] · u[c, p]
//     out[c, p] += y · silu(z[c, p])
//
// LANES channels go side by side through a vector register, so no sum runs across a register. Time goes in blocks of
// STEPS: inputs of a block are brought into tiles of (STEPS, LANES), B and C into (STEPS, states), and the states stay in
// registers for the length of the block. A forward pass that will be differentiated keeps the states at the beginnings
// of blocks; the backward pass computes the others again, block by block, from the last to the first.
//
// Each channel lies on pages of memory of its own, and to find a page or wait for a line costs as much as a block of few
// states. So a forward pass takes as many blocks of the same channels in a row as share their pages, and asks the caches for
// the next block's lines while it computes.
#include <algorithm>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace foveal {

constexpr int STEPS = 64;
#if FOVEAL_LANES == 16
constexpr int WIDEST = 16;  // states kept in registers at a time
#else
constexpr int WIDEST = 4;
#endif

}  // namespace foveal

extern "C" {

// Sizes and strides in elements. Layouts that are not given here are contiguous: A (K, C, N), D and bias (K, C), last
// (B, K, C, N), route (K, steps).
struct ScanShape {
  int64_t batch, channels, states, groups, routes, steps, softplus;
  int64_t u_batch, u_channel, u_place;
  int64_t delta_batch, delta_route, delta_channel, delta_place;
  int64_t b_batch, b_route, b_group, b_state, b_place;
  int64_t c_batch, c_route, c_group, c_state, c_place;
  int64_t z_batch, z_channel, z_place;
  int64_t out_batch, out_channel, out_place;
};

struct ScanData {
  const int32_t* route;  // null: places in order
  const float *u, *delta, *A, *B, *C, *D, *z, *bias;
  float *out, *last, *checkpoints;
};

struct ScanGradients {
  const float* out;              // of the loss by out, strides out_*
  const float* checkpoints;
  float *u, *z;                  // strides of out_*
  float* delta;                  // strides grad_delta_*
  float *A, *D, *bias;           // one for each batch: (B, K, C, N), (B, K, C), (B, K, C)
  float *B, *C;                  // one for each part: (parts, B, K, G, places, N)
  int64_t delta_batch, delta_route, delta_channel, delta_place;
  int64_t parts, places;
};

int foveal_lanes() { return foveal::LANES; }
int foveal_steps() { return foveal::STEPS; }
}

namespace foveal {
namespace {

int64_t blocks_of(const ScanShape& s) { return s.groups * ((s.channels / s.groups + LANES - 1) / LANES); }

// Channels [first, first + count) of one group: what goes through the registers together.
struct Block {
  int64_t group, first;
  int count;
};

Block block_at(const ScanShape& s, int64_t index) {
  const int64_t each = s.channels / s.groups, per_group = (each + LANES - 1) / LANES;
  const int64_t group = index / per_group, inside = (index % per_group) * LANES;
  return {group, group * each + inside, static_cast<int>(std::min<int64_t>(LANES, each - inside))};
}

// Places of a block of steps: consecutive, or as the route says; -1 is skipped.
struct Places {
  const int32_t* route;
  int64_t first;
  int64_t operator[](int64_t t) const { return route == nullptr ? first + t : route[first + t]; }
};

// A (count channels × length places) piece into a tile (STEPS, LANES); what is missing becomes 0.
void bring(Vec* tile, const float* from, int64_t by_channel, int64_t by_place, Places places, int length, int count) {
  if (by_channel == 1 && count == LANES) {
    for (int t = 0; t < length; ++t) tile[t] = places[t] < 0 ? Vec{} : load(from + places[t] * by_place);
    return;
  }
  int t = 0;
  if (by_place == 1 && count == LANES && places.route == nullptr) {
    for (; t + LANES <= length; t += LANES) {
      Vec rows[LANES];
      for (int c = 0; c < LANES; ++c) rows[c] = load(from + c * by_channel + places.first + t);
      transpose(rows);
      for (int c = 0; c < LANES; ++c) tile[t + c] = rows[c];
    }
  }
  for (; t < length; ++t) {
    Vec row{};
    if (places[t] >= 0)
      for (int c = 0; c < count; ++c) row[c] = from[c * by_channel + places[t] * by_place];
    tile[t] = row;
  }
}

// The way back, added to what is there when `add`.
void take_out(const Vec* tile, float* to, int64_t by_channel, int64_t by_place, Places places, int length, int count,
              bool add) {
  if (by_channel == 1 && count == LANES) {
    for (int t = 0; t < length; ++t) {
      if (places[t] < 0) continue;
      float* place = to + places[t] * by_place;
      store(place, add ? load(place) + tile[t] : tile[t]);
    }
    return;
  }
  int t = 0;
  if (by_place == 1 && count == LANES && places.route == nullptr) {
    for (; t + LANES <= length; t += LANES) {
      Vec rows[LANES];
      for (int c = 0; c < LANES; ++c) rows[c] = tile[t + c];
      transpose(rows);
      for (int c = 0; c < LANES; ++c) {
        float* place = to + c * by_channel + places.first + t;
        store(place, add ? load(place) + rows[c] : rows[c]);
      }
    }
  }
  for (; t < length; ++t) {
    if (places[t] < 0) continue;
    for (int c = 0; c < count; ++c) {
      float& place = to[c * by_channel + places[t] * by_place];
      place = add ? place + tile[t][c] : tile[t][c];
    }
  }
}

// Asks the caches for a piece before it is wanted: rows this far apart are not what a processor guesses by itself.
template <int WRITE>
void ask_for(const float* from, int64_t by_channel, int64_t by_place, Places places, int length, int count) {
  constexpr int LINE = 16;
  if (by_place != 1 || places.route != nullptr) return;
  for (int c = 0; c < count; ++c)
    for (int t = 0; t < length; t += LINE) __builtin_prefetch(from + c * by_channel + places.first + t, WRITE);
}

// Weights of all states over some steps, (length, padded states); padding is 0.
void bring_weights(float* tile, const float* from, int64_t by_state, int64_t by_place, Places places, int64_t length,
                   int64_t states, int64_t padded) {
  for (int64_t t = 0; t < length; ++t) {
    const float* row = from + (places[t] < 0 ? 0 : places[t]) * by_place;
    if (by_state == 1) {
      std::copy(row, row + states, tile + t * padded);
    } else {
      for (int64_t n = 0; n < states; ++n) tile[t * padded + n] = row[n * by_state];
    }
  }
}

Vec of_channels(const float* values, const Block& block, int64_t stride = 1) {
  Vec v{};
  for (int c = 0; c < block.count; ++c) v[c] = values[(block.first + c) * stride];
  return v;
}

// A skipped place has a step of 0: the state stays as it is.
void make_steps(Vec* delta, Vec bias, bool soft, Places places, int length) {
  for (int t = 0; t < length; ++t) {
    const Vec raw = delta[t] + bias;
    delta[t] = places[t] < 0 ? Vec{} : soft ? softplus(raw) : raw;
  }
}

// NB states through a block of steps: y[t] += sum_n C · h.
template <int NB>
void advance(const Vec* delta, const Vec* input, Vec* y, const float* b, const float* c, int64_t padded, const Vec* rate,
             Vec* state, int length) {
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = state[n];
  for (int t = 0; t < length; ++t) {
    const Vec step = delta[t], drive = input[t];
    Vec total = y[t];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      h[n] = exp2(step * rate[n]) * h[n] + drive * b[t * padded + n];
      total += h[n] * c[t * padded + n];
    }
    y[t] = total;
  }
  for (int n = 0; n < NB; ++n) state[n] = h[n];
}

// The same, keeping every state and decay: kept[(t + 1) · padded + n], decay[t · padded + n].
template <int NB>
void advance_keeping(const Vec* delta, const Vec* input, Vec* y, const float* b, const float* c, int64_t padded,
                     const Vec* rate, Vec* kept, Vec* decay, int length) {
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = kept[n];
  for (int t = 0; t < length; ++t) {
    const Vec step = delta[t], drive = input[t];
    Vec total = y[t];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Vec a = exp2(step * rate[n]);
      h[n] = a * h[n] + drive * b[t * padded + n];
      total += h[n] * c[t * padded + n];
      decay[t * padded + n] = a;
      kept[(t + 1) * padded + n] = h[n];
    }
    y[t] = total;
  }
}

// NB states back through a block. `rate` is A, not A·log2(e).
template <int NB>
void retreat(const Vec* delta, const Vec* input, const Vec* grad_y, const float* b, const float* c, int64_t padded,
             const Vec* rate, const Vec* kept, const Vec* decay, Vec* grad_state, Vec* grad_rate, Vec* grad_delta,
             Vec* grad_input, Vec* grad_b, Vec* grad_c, int length) {
  Vec g[NB], gr[NB];
  for (int n = 0; n < NB; ++n) g[n] = grad_state[n], gr[n] = grad_rate[n];
  for (int t = length - 1; t >= 0; --t) {
    const Vec gy = grad_y[t], step = delta[t], drive = input[t];
    Vec of_delta = grad_delta[t], of_input = grad_input[t];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const int64_t at = t * padded + n;
      grad_c[at] += gy * kept[at + padded];
      g[n] += gy * c[at];
      grad_b[at] += g[n] * drive;
      of_input += g[n] * b[at];
      g[n] *= decay[at];
      const Vec of_exponent = g[n] * kept[at];
      of_delta += of_exponent * rate[n];
      gr[n] += of_exponent * step;
    }
    grad_delta[t] = of_delta;
    grad_input[t] = of_input;
  }
  for (int n = 0; n < NB; ++n) grad_state[n] = g[n], grad_rate[n] = gr[n];
}

// Calls `run` with a compile-time number of states, WIDEST at a time.
template <class Run>
void by_states(int64_t padded, Run run) {
  int64_t n = 0;
  for (; n + WIDEST <= padded; n += WIDEST) run(std::integral_constant<int, WIDEST>{}, n);
  for (; n + 4 <= padded; n += 4) run(std::integral_constant<int, 4>{}, n);
  for (; n + 2 <= padded; n += 2) run(std::integral_constant<int, 2>{}, n);
  for (; n < padded; ++n) run(std::integral_constant<int, 1>{}, n);
}

struct Buffer {
  explicit Buffer(int64_t vectors) : memory((vectors + 1) * LANES) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    start = reinterpret_cast<Vec*>((address + sizeof(Vec) - 1) / sizeof(Vec) * sizeof(Vec));
  }
  std::vector<float> memory;
  Vec* start;
};

struct Rates {
  Buffer memory;
  int64_t padded;
  Rates(const ScanShape& s, int64_t count) : memory(count * s.states), padded(s.states) {}
  Vec* of(int64_t i) { return memory.start + i * padded; }
};

void fill_rates(Vec* to, const ScanShape& s, const float* A, int64_t route, const Block& block, float factor) {
  for (int64_t n = 0; n < s.states; ++n)
    to[n] = of_channels(A + route * s.channels * s.states + n, block, s.states) * factor;
}

void forward(const ScanShape& s, const ScanData& d, int64_t batch, int64_t begin, int64_t end) {
  const int64_t count = end - begin, states = s.states, time_blocks = (s.steps + STEPS - 1) / STEPS;
  const int64_t all = blocks_of(s);
  // Blocks in a row: a page of floats, less where B and C of so many steps would not stay in the cache.
  const int64_t row = std::max<int64_t>(1, std::min<int64_t>(1024, 16384 / std::max<int64_t>(1, states)) / STEPS);
  Rates rates(s, count);
  Buffer state(count * states), tiles(4 * STEPS);
  std::vector<float> weights(2 * row * STEPS * states);
  Vec *u = tiles.start, *delta = u + STEPS, *input = delta + STEPS, *y = input + STEPS;
  for (int64_t k = 0; k < s.routes; ++k) {
    std::fill(state.start, state.start + count * states, Vec{});
    for (int64_t i = 0; i < count; ++i) fill_rates(rates.of(i), s, d.A, k, block_at(s, begin + i), LOG2E);
    const int32_t* route = d.route == nullptr ? nullptr : d.route + k * s.steps;
    const auto advance_block = [&](int64_t i, const Block& block, int64_t tb, const float* b, const float* c) {
      const Places places{route, tb * STEPS};
      const int length = static_cast<int>(std::min<int64_t>(STEPS, s.steps - tb * STEPS));
      Vec* h = state.start + i * states;
      if (d.checkpoints != nullptr)
        std::copy(h, h + states,
                  reinterpret_cast<LooseVec*>(d.checkpoints) +
                      (((batch * s.routes + k) * time_blocks + tb) * all + begin + i) * states);
      const float* u_at = d.u + batch * s.u_batch + block.first * s.u_channel;
      const float* delta_at = d.delta + batch * s.delta_batch + k * s.delta_route + block.first * s.delta_channel;
      float* out_at = d.out + batch * s.out_batch + block.first * s.out_channel;
      bring(u, u_at, s.u_channel, s.u_place, places, length, block.count);
      bring(delta, delta_at, s.delta_channel, s.delta_place, places, length, block.count);
      if (tb + 1 < time_blocks) {
        const Places next{route, (tb + 1) * STEPS};
        const int steps = static_cast<int>(std::min<int64_t>(STEPS, s.steps - next.first));
        ask_for<0>(u_at, s.u_channel, s.u_place, next, steps, block.count);
        ask_for<0>(delta_at, s.delta_channel, s.delta_place, next, steps, block.count);
        ask_for<1>(out_at, s.out_channel, s.out_place, next, steps, block.count);
      }
      make_steps(delta, d.bias == nullptr ? Vec{} : of_channels(d.bias + k * s.channels, block), s.softplus, places,
                 length);
      const Vec skip = d.D == nullptr ? Vec{} : of_channels(d.D + k * s.channels, block);
      for (int t = 0; t < length; ++t) {
        input[t] = delta[t] * u[t];
        y[t] = skip * u[t];
      }
      by_states(states, [&](auto wide, int64_t n) {
        advance<decltype(wide)::value>(delta, input, y, b + n, c + n, states, rates.of(i) + n, h + n, length);
      });
      if (d.z != nullptr) {
        bring(u, d.z + batch * s.z_batch + block.first * s.z_channel, s.z_channel, s.z_place, places, length, block.count);
        for (int t = 0; t < length; ++t) y[t] *= u[t] * sigmoid(u[t]);
      }
      take_out(y, out_at, s.out_channel, s.out_place, places, length, block.count, d.route != nullptr || k > 0);
    };
    for (int64_t first = 0; first < time_blocks; first += row) {
      const int64_t last = std::min(first + row, time_blocks);
      const int64_t length = std::min(last * STEPS, s.steps) - first * STEPS;
      float *b = weights.data(), *c = b + row * STEPS * states;
      int64_t have = -1;
      for (int64_t i = 0; i < count; ++i) {
        const Block block = block_at(s, begin + i);
        if (block.group != have) {
          have = block.group;
          const Places places{route, first * STEPS};
          bring_weights(b, d.B + batch * s.b_batch + k * s.b_route + have * s.b_group, s.b_state, s.b_place, places,
                        length, states, states);
          bring_weights(c, d.C + batch * s.c_batch + k * s.c_route + have * s.c_group, s.c_state, s.c_place, places,
                        length, states, states);
        }
        for (int64_t tb = first; tb < last; ++tb) {
          const int64_t at = (tb - first) * STEPS * states;
          advance_block(i, block, tb, b + at, c + at);
        }
      }
    }
    if (d.last == nullptr) continue;
    for (int64_t i = 0; i < count; ++i) {
      const Block block = block_at(s, begin + i);
      for (int j = 0; j < block.count; ++j)
        for (int64_t n = 0; n < states; ++n)
          d.last[((batch * s.routes + k) * s.channels + block.first + j) * states + n] = state.start[i * states + n][j];
    }
  }
}

void spill(float* to, const Block& block, int64_t stride, Vec values) {
  for (int c = 0; c < block.count; ++c) to[(block.first + c) * stride] = values[c];
}

void backward(const ScanShape& s, const ScanData& d, const ScanGradients& g, int64_t batch, int64_t part, int64_t begin,
              int64_t end) {
  const int64_t count = end - begin, states = s.states, time_blocks = (s.steps + STEPS - 1) / STEPS;
  const int64_t all = blocks_of(s), tile = STEPS * states;
  Rates rates(s, count), powers(s, count);
  Buffer grad_state(count * states), grad_rate(count * states), of_channel(2 * count), tiles(8 * STEPS);
  Buffer history((STEPS + 1) * states), decays(tile), of_weights(2 * tile);
  std::vector<float> weights(2 * tile);
  Vec *u = tiles.start, *delta = u + STEPS, *input = delta + STEPS, *y = input + STEPS, *gy = y + STEPS,
      *grad_delta = gy + STEPS, *grad_input = grad_delta + STEPS, *z = grad_input + STEPS;
  Vec *grad_b = of_weights.start, *grad_c = grad_b + tile;
  float *b = weights.data(), *c = b + tile;
  for (int64_t k = 0; k < s.routes; ++k) {
    std::fill(grad_state.start, grad_state.start + count * states, Vec{});
    std::fill(grad_rate.start, grad_rate.start + count * states, Vec{});
    std::fill(of_channel.start, of_channel.start + 2 * count, Vec{});
    for (int64_t i = 0; i < count; ++i) {
      fill_rates(rates.of(i), s, d.A, k, block_at(s, begin + i), 1.0f);
      fill_rates(powers.of(i), s, d.A, k, block_at(s, begin + i), LOG2E);
    }
    const int32_t* route = d.route == nullptr ? nullptr : d.route + k * s.steps;
    for (int64_t tb = time_blocks - 1; tb >= 0; --tb) {
      const Places places{route, tb * STEPS};
      const int length = static_cast<int>(std::min<int64_t>(STEPS, s.steps - tb * STEPS));
      int64_t have = -1;
      const auto hand_over = [&] {  // sums over the channels of a group
        if (have < 0) return;
        const int64_t at = (((part * s.batch + batch) * s.routes + k) * s.groups + have) * g.places;
        for (int t = 0; t < length; ++t) {
          if (places[t] < 0) continue;
          for (int64_t n = 0; n < states; ++n) {
            g.B[(at + places[t]) * states + n] = sum(grad_b[t * states + n]);
            g.C[(at + places[t]) * states + n] = sum(grad_c[t * states + n]);
          }
        }
      };
      for (int64_t i = 0; i < count; ++i) {
        const Block block = block_at(s, begin + i);
        if (block.group != have) {
          hand_over();
          have = block.group;
          std::fill(of_weights.start, of_weights.start + 2 * tile, Vec{});
          bring_weights(b, d.B + batch * s.b_batch + k * s.b_route + have * s.b_group, s.b_state, s.b_place, places,
                        length, states, states);
          bring_weights(c, d.C + batch * s.c_batch + k * s.c_route + have * s.c_group, s.c_state, s.c_place, places,
                        length, states, states);
        }
        bring(u, d.u + batch * s.u_batch + block.first * s.u_channel, s.u_channel, s.u_place, places, length, block.count);
        bring(delta, d.delta + batch * s.delta_batch + k * s.delta_route + block.first * s.delta_channel, s.delta_channel,
              s.delta_place, places, length, block.count);
        bring(gy, g.out + batch * s.out_batch + block.first * s.out_channel, s.out_channel, s.out_place, places, length,
              block.count);
        make_steps(delta, d.bias == nullptr ? Vec{} : of_channels(d.bias + k * s.channels, block), s.softplus, places,
                   length);
        const Vec skip = d.D == nullptr ? Vec{} : of_channels(d.D + k * s.channels, block);
        for (int t = 0; t < length; ++t) {
          input[t] = delta[t] * u[t];
          y[t] = skip * u[t];
          grad_delta[t] = grad_input[t] = Vec{};
        }
        const auto* kept = reinterpret_cast<const LooseVec*>(g.checkpoints) +
                           (((batch * s.routes + k) * time_blocks + tb) * all + begin + i) * states;
        std::copy(kept, kept + states, history.start);
        by_states(states, [&](auto wide, int64_t n) {
          advance_keeping<decltype(wide)::value>(delta, input, y, b + n, c + n, states, powers.of(i) + n,
                                                 history.start + n, decays.start + n, length);
        });
        if (d.z != nullptr) {
          bring(z, d.z + batch * s.z_batch + block.first * s.z_channel, s.z_channel, s.z_place, places, length,
                block.count);
          for (int t = 0; t < length; ++t) {
            const Vec gate = sigmoid(z[t]), passed = z[t] * gate;
            z[t] = gy[t] * y[t] * gate * (1.0f + z[t] * (1.0f - gate));
            gy[t] *= passed;
          }
          take_out(z, g.z + batch * s.out_batch + block.first * s.out_channel, s.out_channel, s.out_place, places, length,
                   block.count, false);
        }
        Vec of_skip{}, of_bias{};
        for (int t = 0; t < length; ++t) of_skip += gy[t] * u[t];
        by_states(states, [&](auto wide, int64_t n) {
          retreat<decltype(wide)::value>(delta, input, gy, b + n, c + n, states, rates.of(i) + n, history.start + n,
                                         decays.start + n, grad_state.start + i * states + n,
                                         grad_rate.start + i * states + n, grad_delta, grad_input, grad_b + n, grad_c + n,
                                         length);
        });
        for (int t = 0; t < length; ++t) {
          Vec of_step = grad_delta[t] + grad_input[t] * u[t];
          // The slope of softplus is 1 - exp(-softplus).
          if (s.softplus) of_step *= 1.0f - exp(-delta[t]);
          if (places[t] < 0) of_step = Vec{};
          of_bias += of_step;
          grad_delta[t] = of_step;
          grad_input[t] = grad_input[t] * delta[t] + skip * gy[t];
        }
        of_channel.start[2 * i] += of_skip;
        of_channel.start[2 * i + 1] += of_bias;
        take_out(grad_input, g.u + batch * s.out_batch + block.first * s.out_channel, s.out_channel, s.out_place, places,
                 length, block.count, d.route != nullptr || k > 0);
        take_out(grad_delta, g.delta + batch * g.delta_batch + k * g.delta_route + block.first * g.delta_channel,
                 g.delta_channel, g.delta_place, places, length, block.count, false);
      }
      hand_over();
    }
    for (int64_t i = 0; i < count; ++i) {
      const Block block = block_at(s, begin + i);
      const int64_t row = (batch * s.routes + k) * s.channels;
      for (int64_t n = 0; n < states; ++n) spill(g.A + row * states + n, block, states, grad_rate.start[i * states + n]);
      spill(g.D + row, block, 1, of_channel.start[2 * i]);
      spill(g.bias + row, block, 1, of_channel.start[2 * i + 1]);
    }
  }
}

}  // namespace
}  // namespace foveal

extern "C" {

void foveal_scan_forward(const ScanShape* shape, const ScanData* data, int threads) {
  const int64_t blocks = foveal::blocks_of(*shape);
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(blocks, (threads + shape->batch - 1) / shape->batch));
  foveal::parallel(shape->batch * parts, threads, [&](int64_t task) {
    const int64_t part = task % parts;
    foveal::forward(*shape, *data, task / parts, blocks * part / parts, blocks * (part + 1) / parts);
  });
}

void foveal_scan_backward(const ScanShape* shape, const ScanData* data, const ScanGradients* gradients, int threads) {
  const int64_t blocks = foveal::blocks_of(*shape), parts = gradients->parts;
  foveal::parallel(shape->batch * parts, threads, [&](int64_t task) {
    const int64_t part = task % parts;
    foveal::backward(*shape, *data, *gradients, task / parts, part, blocks * part / parts, blocks * (part + 1) / parts);
  });
}
}
