// Selective scan, forward and backward, along one or several routes.
//
// For route k, channel c and the t-th position p of the route:
//     delta = softplus(delta[k, c, p] + bias[k, c])
//     h_n   = exp(delta · A[k, c, n]) · h_n + delta · u[c, p] · B[k, g, n, p]          from h = start
//     y     = sum_n C[k, g, n, p] · h_n + D[k, c] · u[c, p]
//     out[c, p] += y · silu(z[c, p])
//
// B and C may be constant per channel, (K, C, N); they and their gradients are then not expanded over the places.
//
// LANES channels share a vector register, so no sum runs across a register. Time is processed in blocks of STEPS: inputs
// of a block are loaded into tiles of (STEPS, LANES), B and C into (STEPS, states), and the states stay in registers for
// the length of the block. A forward pass that will be differentiated saves the states at the starts of blocks; the
// backward pass recomputes the others, block by block, from last to first.
//
// Each channel lies on its own memory pages, and a TLB or cache miss costs as much as a block of few states. So a forward
// pass processes consecutively as many blocks of the same channels as share their pages, and prefetches the next block's
// lines while it computes.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace foveal {

constexpr int STEPS = 64;
#if FOVEAL_LANES == 16
constexpr int WIDEST = 16;  // states held in registers at a time
#else
constexpr int WIDEST = 4;
#endif

}  // namespace foveal

extern "C" {

// Sizes and strides in elements. Tensors without strides here are contiguous: A (K, C, N), D and bias (K, C), start and
// last (B, K, C, N), route (K, steps), and B or C if constant, (K, C, N).
struct ScanShape {
  int64_t batch, channels, states, groups, routes, steps, softplus, b_constant, c_constant;
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
  const float* start;  // null: zeros
  float *out, *last, *checkpoints;
};

struct ScanGradients {
  const float* out;              // gradient of the loss by out, strides out_*
  const float* last;             // gradient of the loss by the last states, null for zeros
  const float* checkpoints;
  float *u, *z;                  // strides of out_*
  float* delta;                  // strides grad_delta_*
  float *A, *D, *bias;           // one per batch: (B, K, C, N), (B, K, C), (B, K, C)
  float* start;                  // (B, K, C, N), null if not requested
  float *B, *C;                  // one per part: (parts, B, K, G, places, N); if constant, one per batch:
                                 // (B, K, C, N)
  int64_t delta_batch, delta_route, delta_channel, delta_place;
  int64_t parts, places;
};

int foveal_lanes() { return foveal::LANES; }
int foveal_steps() { return foveal::STEPS; }
}

namespace foveal {
namespace {

int64_t blocks_of(const ScanShape& s) { return s.groups * ((s.channels / s.groups + LANES - 1) / LANES); }

// Channels [first, first + count) of one group, which are processed together in registers.
struct Block {
  int64_t group, first;
  int count;
};

Block block_at(const ScanShape& s, int64_t index) {
  const int64_t each = s.channels / s.groups, per_group = (each + LANES - 1) / LANES;
  const int64_t group = index / per_group, inside = (index % per_group) * LANES;
  return {group, group * each + inside, static_cast<int>(std::min<int64_t>(LANES, each - inside))};
}

// Places of a block of steps: consecutive, or along the route; -1 is skipped.
struct Places {
  const int32_t* route;
  int64_t first;
  int64_t operator[](int64_t t) const { return route == nullptr ? first + t : route[first + t]; }
};

// A (count channels × length places) piece into a tile (STEPS, LANES), zero-padded.
void load_tile(Vec* tile, const float* from, int64_t by_channel, int64_t by_place, Places places, int length, int count) {
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

// The inverse, adding to the present values if `add`.
void store_tile(const Vec* tile, float* to, int64_t by_channel, int64_t by_place, Places places, int length, int count,
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

// Prefetches a piece: rows this far apart defeat the hardware prefetcher.
template <int WRITE>
void prefetch_tile(const float* from, int64_t by_channel, int64_t by_place, Places places, int length, int count) {
  constexpr int LINE = 16;
  if (by_place != 1 || places.route != nullptr) return;
  for (int c = 0; c < count; ++c)
    for (int t = 0; t < length; t += LINE) __builtin_prefetch(from + c * by_channel + places.first + t, WRITE);
}

// Weights of all states over some steps, (length, padded states), zero-padded.
void load_weights(float* tile, const float* from, int64_t by_state, int64_t by_place, Places places, int64_t length,
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

// B and C of a group, if not constant.
void load_group_weights(const ScanShape& s, const ScanData& d, int64_t batch, int64_t route, int64_t group,
                            Places places, int64_t length, float* b, float* c) {
  if (!s.b_constant)
    load_weights(b, d.B + batch * s.b_batch + route * s.b_route + group * s.b_group, s.b_state, s.b_place, places, length,
                  s.states, s.states);
  if (!s.c_constant)
    load_weights(c, d.C + batch * s.c_batch + route * s.c_route + group * s.c_group, s.c_state, s.c_place, places, length,
                  s.states, s.states);
}

Vec of_channels(const float* values, const Block& block, int64_t stride = 1) {
  Vec v{};
  for (int c = 0; c < block.count; ++c) v[c] = values[(block.first + c) * stride];
  return v;
}

// A skipped place has a step of 0: the state is unchanged. `slope`, if given, is set to the derivative of softplus, computed
// from its argument: 1 - exp(-softplus) would cancel for small steps.
void make_steps(Vec* delta, Vec bias, bool soft, Places places, int length, Vec* slope = nullptr) {
  for (int t = 0; t < length; ++t) {
    const Vec raw = delta[t] + bias;
    delta[t] = places[t] < 0 ? Vec{} : soft ? softplus(raw) : raw;
    if (slope != nullptr) slope[t] = soft ? sigmoid(raw) : fill(1.0f);
  }
}

// B or C of a block of steps: values shared by the channels of a group, a row per step, or constants per channel. The same
// for their gradients.
struct Shared {
  const float* at;
  int64_t row;
  float operator()(int64_t t, int64_t n) const { return at[t * row + n]; }
};
struct Constant {
  const Vec* at;
  Vec operator()(int64_t, int64_t n) const { return at[n]; }
};
struct SharedSum {
  Vec* at;
  int64_t row;
  Vec& operator()(int64_t t, int64_t n) const { return at[t * row + n]; }
};
struct ConstantSum {
  Vec* at;
  Vec& operator()(int64_t, int64_t n) const { return at[n]; }
};

template <bool CONSTANT>
auto weights_of(const float* shared, int64_t row, const Vec* constant) {
  if constexpr (CONSTANT)
    return Constant{constant};
  else
    return Shared{shared, row};
}
template <bool CONSTANT>
auto sums_of(Vec* shared, int64_t row, Vec* constant) {
  if constexpr (CONSTANT)
    return ConstantSum{constant};
  else
    return SharedSum{shared, row};
}

// Calls `run` with compile-time flags for constant B and C.
template <class Run>
void by_kind(const ScanShape& s, Run run) {
  if (s.b_constant && s.c_constant)
    run(std::true_type{}, std::true_type{});
  else if (s.b_constant)
    run(std::true_type{}, std::false_type{});
  else if (s.c_constant)
    run(std::false_type{}, std::true_type{});
  else
    run(std::false_type{}, std::false_type{});
}

// NB states over a block of steps: y[t] += sum_n C · h.
template <int NB, class In, class Out>
void advance(const Vec* delta, const Vec* input, Vec* y, In b, Out c, const Vec* rate, Vec* state, int length) {
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = state[n];
  for (int t = 0; t < length; ++t) {
    const Vec step = delta[t], drive = input[t];
    Vec total = y[t];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      h[n] = exp2(step * rate[n]) * h[n] + drive * b(t, n);
      total += h[n] * c(t, n);
    }
    y[t] = total;
  }
  for (int n = 0; n < NB; ++n) state[n] = h[n];
}

// The same, saving every state and decay: kept[(t + 1) · padded + n], decay[t · padded + n].
template <int NB, class In, class Out>
void advance_keeping(const Vec* delta, const Vec* input, Vec* y, In b, Out c, int64_t padded, const Vec* rate, Vec* kept,
                     Vec* decay, int length) {
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = kept[n];
  for (int t = 0; t < length; ++t) {
    const Vec step = delta[t], drive = input[t];
    Vec total = y[t];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Vec a = exp2(step * rate[n]);
      h[n] = a * h[n] + drive * b(t, n);
      total += h[n] * c(t, n);
      decay[t * padded + n] = a;
      kept[(t + 1) * padded + n] = h[n];
    }
    y[t] = total;
  }
}

// The backward pass of NB states over a block. `rate` is A, not A·log2(e).
template <int NB, class In, class Out, class InSum, class OutSum>
void retreat(const Vec* delta, const Vec* input, const Vec* grad_y, In b, Out c, int64_t padded, const Vec* rate,
             const Vec* kept, const Vec* decay, Vec* grad_state, Vec* grad_rate, Vec* grad_delta, Vec* grad_input,
             InSum grad_b, OutSum grad_c, int length) {
  Vec g[NB], gr[NB];
  for (int n = 0; n < NB; ++n) g[n] = grad_state[n], gr[n] = grad_rate[n];
  for (int t = length - 1; t >= 0; --t) {
    const Vec gy = grad_y[t], step = delta[t], drive = input[t];
    Vec of_delta = grad_delta[t], of_input = grad_input[t];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const int64_t at = t * padded + n;
      grad_c(t, n) += gy * kept[at + padded];
      g[n] += gy * c(t, n);
      grad_b(t, n) += g[n] * drive;
      of_input += g[n] * b(t, n);
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

// A value per channel and state of several blocks: rates, states, constant weights.
struct Table {
  Buffer memory;
  int64_t states;
  Table(const ScanShape& s, int64_t blocks) : memory(blocks * s.states), states(s.states) {}
  Vec* of(int64_t i) { return memory.start + i * states; }
};

// From values (K, C, N).
void fill_table(Vec* to, const ScanShape& s, const float* values, int64_t route, const Block& block,
                float factor = 1.0f) {
  for (int64_t n = 0; n < s.states; ++n)
    to[n] = of_channels(values + route * s.channels * s.states + n, block, s.states) * factor;
}

// To values (K, C, N).
void spill_table(float* values, const ScanShape& s, int64_t route, const Block& block, const Vec* from) {
  for (int c = 0; c < block.count; ++c)
    for (int64_t n = 0; n < s.states; ++n) values[(route * s.channels + block.first + c) * s.states + n] = from[n][c];
}

void forward(const ScanShape& s, const ScanData& d, int64_t batch, int64_t begin, int64_t end) {
  const int64_t count = end - begin, states = s.states, time_blocks = (s.steps + STEPS - 1) / STEPS;
  const int64_t all = blocks_of(s);
  // Consecutive blocks: a page of floats, fewer if B and C of so many steps would not stay in cache.
  const int64_t row = std::max<int64_t>(1, std::min<int64_t>(1024, 16384 / std::max<int64_t>(1, states)) / STEPS);
  Table rates(s, count), state(s, count), ins(s, s.b_constant ? count : 0), outs(s, s.c_constant ? count : 0);
  Buffer tiles(4 * STEPS);
  std::vector<float> weights(2 * row * STEPS * states);
  Vec *u = tiles.start, *delta = u + STEPS, *input = delta + STEPS, *y = input + STEPS;
  for (int64_t k = 0; k < s.routes; ++k) {
    for (int64_t i = 0; i < count; ++i) {
      const Block block = block_at(s, begin + i);
      fill_table(rates.of(i), s, d.A, k, block, LOG2E);
      if (s.b_constant) fill_table(ins.of(i), s, d.B, k, block);
      if (s.c_constant) fill_table(outs.of(i), s, d.C, k, block);
      if (d.start == nullptr)
        std::fill(state.of(i), state.of(i) + states, Vec{});
      else
        fill_table(state.of(i), s, d.start + batch * s.routes * s.channels * states, k, block);
    }
    const int32_t* route = d.route == nullptr ? nullptr : d.route + k * s.steps;
    const auto advance_block = [&](int64_t i, const Block& block, int64_t tb, const float* b, const float* c) {
      const Places places{route, tb * STEPS};
      const int length = static_cast<int>(std::min<int64_t>(STEPS, s.steps - tb * STEPS));
      Vec* h = state.of(i);
      if (d.checkpoints != nullptr)
        std::copy(h, h + states,
                  reinterpret_cast<LooseVec*>(d.checkpoints) +
                      (((batch * s.routes + k) * time_blocks + tb) * all + begin + i) * states);
      const float* u_at = d.u + batch * s.u_batch + block.first * s.u_channel;
      const float* delta_at = d.delta + batch * s.delta_batch + k * s.delta_route + block.first * s.delta_channel;
      float* out_at = d.out + batch * s.out_batch + block.first * s.out_channel;
      load_tile(u, u_at, s.u_channel, s.u_place, places, length, block.count);
      load_tile(delta, delta_at, s.delta_channel, s.delta_place, places, length, block.count);
      if (tb + 1 < time_blocks) {
        const Places next{route, (tb + 1) * STEPS};
        const int steps = static_cast<int>(std::min<int64_t>(STEPS, s.steps - next.first));
        prefetch_tile<0>(u_at, s.u_channel, s.u_place, next, steps, block.count);
        prefetch_tile<0>(delta_at, s.delta_channel, s.delta_place, next, steps, block.count);
        prefetch_tile<1>(out_at, s.out_channel, s.out_place, next, steps, block.count);
      }
      make_steps(delta, d.bias == nullptr ? Vec{} : of_channels(d.bias + k * s.channels, block), s.softplus, places,
                 length);
      const Vec skip = d.D == nullptr ? Vec{} : of_channels(d.D + k * s.channels, block);
      for (int t = 0; t < length; ++t) {
        input[t] = delta[t] * u[t];
        y[t] = skip * u[t];
      }
      by_kind(s, [&](auto b_constant, auto c_constant) {
        by_states(states, [&](auto wide, int64_t n) {
          advance<decltype(wide)::value>(delta, input, y,
                                         weights_of<decltype(b_constant)::value>(b + n, states, ins.of(i) + n),
                                         weights_of<decltype(c_constant)::value>(c + n, states, outs.of(i) + n),
                                         rates.of(i) + n, h + n, length);
        });
      });
      if (d.z != nullptr) {
        load_tile(u, d.z + batch * s.z_batch + block.first * s.z_channel, s.z_channel, s.z_place, places, length, block.count);
        for (int t = 0; t < length; ++t) y[t] *= u[t] * sigmoid(u[t]);
      }
      store_tile(y, out_at, s.out_channel, s.out_place, places, length, block.count, d.route != nullptr || k > 0);
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
          load_group_weights(s, d, batch, k, have, places, length, b, c);
        }
        for (int64_t tb = first; tb < last; ++tb) {
          const int64_t at = (tb - first) * STEPS * states;
          advance_block(i, block, tb, b + at, c + at);
        }
      }
    }
    if (d.last == nullptr) continue;
    for (int64_t i = 0; i < count; ++i)
      spill_table(d.last + batch * s.routes * s.channels * states, s, k, block_at(s, begin + i), state.of(i));
  }
}

void spill(float* to, const Block& block, Vec values) {
  for (int c = 0; c < block.count; ++c) to[block.first + c] = values[c];
}

void backward(const ScanShape& s, const ScanData& d, const ScanGradients& g, int64_t batch, int64_t part, int64_t begin,
              int64_t end) {
  const int64_t count = end - begin, states = s.states, time_blocks = (s.steps + STEPS - 1) / STEPS;
  const int64_t all = blocks_of(s), tile = STEPS * states;
  Table rates(s, count), powers(s, count), grad_state(s, count), grad_rate(s, count);
  Table ins(s, s.b_constant ? count : 0), outs(s, s.c_constant ? count : 0);
  Table grad_ins(s, s.b_constant ? count : 0), grad_outs(s, s.c_constant ? count : 0);
  Buffer of_channel(2 * count), tiles(9 * STEPS), history((STEPS + 1) * states), decays(tile), of_weights(2 * tile);
  std::vector<float> weights(2 * tile);
  Vec *u = tiles.start, *delta = u + STEPS, *input = delta + STEPS, *y = input + STEPS, *gy = y + STEPS,
      *grad_delta = gy + STEPS, *grad_input = grad_delta + STEPS, *z = grad_input + STEPS, *slope = z + STEPS;
  Vec *grad_b = of_weights.start, *grad_c = grad_b + tile;
  float *b = weights.data(), *c = b + tile;
  for (int64_t k = 0; k < s.routes; ++k) {
    std::fill(of_channel.start, of_channel.start + 2 * count, Vec{});
    for (int64_t i = 0; i < count; ++i) {
      const Block block = block_at(s, begin + i);
      fill_table(rates.of(i), s, d.A, k, block);
      fill_table(powers.of(i), s, d.A, k, block, LOG2E);
      std::fill(grad_rate.of(i), grad_rate.of(i) + states, Vec{});
      if (g.last == nullptr)
        std::fill(grad_state.of(i), grad_state.of(i) + states, Vec{});
      else
        fill_table(grad_state.of(i), s, g.last + batch * s.routes * s.channels * states, k, block);
      if (s.b_constant) {
        fill_table(ins.of(i), s, d.B, k, block);
        std::fill(grad_ins.of(i), grad_ins.of(i) + states, Vec{});
      }
      if (s.c_constant) {
        fill_table(outs.of(i), s, d.C, k, block);
        std::fill(grad_outs.of(i), grad_outs.of(i) + states, Vec{});
      }
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
            if (!s.b_constant) g.B[(at + places[t]) * states + n] = sum(grad_b[t * states + n]);
            if (!s.c_constant) g.C[(at + places[t]) * states + n] = sum(grad_c[t * states + n]);
          }
        }
      };
      for (int64_t i = 0; i < count; ++i) {
        const Block block = block_at(s, begin + i);
        if (block.group != have) {
          hand_over();
          have = block.group;
          std::fill(of_weights.start, of_weights.start + 2 * tile, Vec{});
          load_group_weights(s, d, batch, k, have, places, length, b, c);
        }
        load_tile(u, d.u + batch * s.u_batch + block.first * s.u_channel, s.u_channel, s.u_place, places, length, block.count);
        load_tile(delta, d.delta + batch * s.delta_batch + k * s.delta_route + block.first * s.delta_channel, s.delta_channel,
              s.delta_place, places, length, block.count);
        load_tile(gy, g.out + batch * s.out_batch + block.first * s.out_channel, s.out_channel, s.out_place, places, length,
              block.count);
        make_steps(delta, d.bias == nullptr ? Vec{} : of_channels(d.bias + k * s.channels, block), s.softplus, places,
                   length, slope);
        const Vec skip = d.D == nullptr ? Vec{} : of_channels(d.D + k * s.channels, block);
        for (int t = 0; t < length; ++t) {
          input[t] = delta[t] * u[t];
          y[t] = skip * u[t];
          grad_delta[t] = grad_input[t] = Vec{};
        }
        const auto* kept = reinterpret_cast<const LooseVec*>(g.checkpoints) +
                           (((batch * s.routes + k) * time_blocks + tb) * all + begin + i) * states;
        std::copy(kept, kept + states, history.start);
        by_kind(s, [&](auto b_constant, auto c_constant) {
          by_states(states, [&](auto wide, int64_t n) {
            advance_keeping<decltype(wide)::value>(delta, input, y,
                                                   weights_of<decltype(b_constant)::value>(b + n, states, ins.of(i) + n),
                                                   weights_of<decltype(c_constant)::value>(c + n, states, outs.of(i) + n),
                                                   states, powers.of(i) + n, history.start + n, decays.start + n, length);
          });
        });
        if (d.z != nullptr) {
          load_tile(z, d.z + batch * s.z_batch + block.first * s.z_channel, s.z_channel, s.z_place, places, length,
                block.count);
          for (int t = 0; t < length; ++t) {
            const Vec gate = sigmoid(z[t]), passed = z[t] * gate;
            z[t] = gy[t] * y[t] * gate * (1.0f + z[t] * (1.0f - gate));
            gy[t] *= passed;
          }
          store_tile(z, g.z + batch * s.out_batch + block.first * s.out_channel, s.out_channel, s.out_place, places, length,
                   block.count, false);
        }
        Vec of_skip{}, of_bias{};
        for (int t = 0; t < length; ++t) of_skip += gy[t] * u[t];
        by_kind(s, [&](auto b_constant, auto c_constant) {
          constexpr bool B = decltype(b_constant)::value, C = decltype(c_constant)::value;
          by_states(states, [&](auto wide, int64_t n) {
            retreat<decltype(wide)::value>(delta, input, gy, weights_of<B>(b + n, states, ins.of(i) + n),
                                           weights_of<C>(c + n, states, outs.of(i) + n), states, rates.of(i) + n,
                                           history.start + n, decays.start + n, grad_state.of(i) + n,
                                           grad_rate.of(i) + n, grad_delta, grad_input,
                                           sums_of<B>(grad_b + n, states, grad_ins.of(i) + n),
                                           sums_of<C>(grad_c + n, states, grad_outs.of(i) + n), length);
          });
        });
        for (int t = 0; t < length; ++t) {
          Vec of_step = (grad_delta[t] + grad_input[t] * u[t]) * slope[t];
          if (places[t] < 0) of_step = Vec{};
          of_bias += of_step;
          grad_delta[t] = of_step;
          grad_input[t] = grad_input[t] * delta[t] + skip * gy[t];
        }
        of_channel.start[2 * i] += of_skip;
        of_channel.start[2 * i + 1] += of_bias;
        store_tile(grad_input, g.u + batch * s.out_batch + block.first * s.out_channel, s.out_channel, s.out_place, places,
                 length, block.count, d.route != nullptr || k > 0);
        store_tile(grad_delta, g.delta + batch * g.delta_batch + k * g.delta_route + block.first * g.delta_channel,
                 g.delta_channel, g.delta_place, places, length, block.count, false);
      }
      hand_over();
    }
    for (int64_t i = 0; i < count; ++i) {
      const Block block = block_at(s, begin + i);
      const int64_t row = (batch * s.routes + k) * s.channels, picture = batch * s.routes * s.channels * states;
      spill_table(g.A + picture, s, k, block, grad_rate.of(i));
      if (s.b_constant) spill_table(g.B + picture, s, k, block, grad_ins.of(i));
      if (s.c_constant) spill_table(g.C + picture, s, k, block, grad_outs.of(i));
      if (g.start != nullptr) spill_table(g.start + picture, s, k, block, grad_state.of(i));
      spill(g.D + row, block, of_channel.start[2 * i]);
      spill(g.bias + row, block, of_channel.start[2 * i + 1]);
    }
  }
}

}  // namespace
}  // namespace foveal

extern "C" {

// Both return 0, or 1 if memory ran out.
int foveal_scan_forward(const ScanShape* shape, const ScanData* data, int threads) {
  return foveal::code_of([&] {
    const int64_t blocks = foveal::blocks_of(*shape);
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(blocks, (threads + shape->batch - 1) / shape->batch));
    foveal::parallel(shape->batch * parts, threads, [&](int64_t task) {
      const int64_t part = task % parts;
      foveal::forward(*shape, *data, task / parts, blocks * part / parts, blocks * (part + 1) / parts);
    });
  });
}

int foveal_scan_backward(const ScanShape* shape, const ScanData* data, const ScanGradients* gradients, int threads) {
  return foveal::code_of([&] {
    const int64_t blocks = foveal::blocks_of(*shape), parts = gradients->parts;
    foveal::parallel(shape->batch * parts, threads, [&](int64_t task) {
      const int64_t part = task % parts;
      foveal::backward(*shape, *data, *gradients, task / parts, part, blocks * part / parts,
                       blocks * (part + 1) / parts);
    });
  });
}
}
