// Linear attention with one decay per step and head: the recurrence of state space duality (Mamba-2).
//
//     S_t = exp(r_t) S_(t-1) + k_t v_tᵀ        S is (states, channels)
//     y_t = S_tᵀ q_t
//
// As many products as the chunked form, without intermediate matrices: channels are vectorised, a few rows of S stay in
// registers for a block of STEPS, and each row takes one product for the decay, one to add k_t v_tᵀ and one for the
// output with q_t. Its gradients are the same recurrence, some of them in reverse time.
#include <algorithm>
#include <vector>

#include "simd.h"
#include "threads.h"

extern "C" {

// All contiguous: q (B, L, query_groups, N), k (B, L, key_groups, N), v (B, L, value_groups, P), rates (B, L, H), start
// (B, H, N, P) or null for 0, out (B, L, H, P), last (B, H, N, P). Each group serves H / groups adjacent heads.
// In reverse time, a step decays by the rate of the step after it.
struct Attention {
  int64_t batch, length, heads, query_groups, key_groups, value_groups, states, channels, backward;
  const float *q, *k, *v, *rates, *start;
  float *out, *last;
};
}

namespace foveal {
namespace {

constexpr int STEPS = 32;
constexpr int VECS = 2;
constexpr int ACROSS = VECS * LANES;

struct Steps {
  int64_t count;
  Vec decay[STEPS];
  Vec v[STEPS][VECS], y[STEPS][VECS];
  const float *q[STEPS], *k[STEPS];
};

// ROWS rows of S over a block of steps.
template <int ROWS>
void walk(Steps& steps, float* state, int64_t n) {
  Vec row[ROWS][VECS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < VECS; ++j) row[i][j] = load(state + i * ACROSS + j * LANES);
  for (int64_t t = 0; t < steps.count; ++t) {
    const float *k = steps.k[t] + n, *q = steps.q[t] + n;
    // Two sums per vector: a single one would be a dependency chain over the rows.
    Vec even[VECS], odd[VECS];
    for (int j = 0; j < VECS; ++j) {
      even[j] = steps.y[t][j];
      odd[j] = Vec{};
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Vec in = fill(k[i]), out = fill(q[i]);
      for (int j = 0; j < VECS; ++j) {
        row[i][j] = row[i][j] * steps.decay[t] + in * steps.v[t][j];
        (i % 2 ? odd : even)[j] += out * row[i][j];
      }
    }
    for (int j = 0; j < VECS; ++j) steps.y[t][j] = even[j] + odd[j];
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < VECS; ++j) store(state + i * ACROSS + j * LANES, row[i][j]);
}

// Some channels of one head of one sequence.
void attend(const Attention& a, int64_t batch, int64_t head, int64_t first) {
  const int64_t width = std::min<int64_t>(ACROSS, a.channels - first);
  const int64_t query = head / (a.heads / a.query_groups), key = head / (a.heads / a.key_groups),
                value = head / (a.heads / a.value_groups);
  std::vector<float> state(a.states * ACROSS, 0.0f);
  const int64_t place = ((batch * a.heads + head) * a.states) * a.channels + first;
  if (a.start != nullptr)
    for (int64_t n = 0; n < a.states; ++n)
      std::copy_n(a.start + place + n * a.channels, width, state.data() + n * ACROSS);
  Steps steps;
  alignas(64) float rates[STEPS] = {}, tile[ACROSS] = {};
  for (int64_t begin = 0; begin < a.length; begin += STEPS) {
    steps.count = std::min<int64_t>(STEPS, a.length - begin);
    for (int64_t i = 0; i < steps.count; ++i) {
      const int64_t t = a.backward ? a.length - 1 - begin - i : begin + i;
      const int64_t of = a.backward ? t + 1 : t;  // index of the rate
      const int64_t row = batch * a.length + t;
      rates[i] = of < a.length ? a.rates[(batch * a.length + of) * a.heads + head] : 0.0f;
      steps.q[i] = a.q + (row * a.query_groups + query) * a.states;
      steps.k[i] = a.k + (row * a.key_groups + key) * a.states;
      std::copy_n(a.v + (row * a.value_groups + value) * a.channels + first, width, tile);
      for (int j = 0; j < VECS; ++j) {
        steps.v[i][j] = load(tile + j * LANES);
        steps.y[i][j] = Vec{};
      }
    }
    for (int i = 0; i < STEPS; i += LANES) {
      const Vec decays = exp(load(rates + i));
      for (int lane = 0; lane < LANES; ++lane) steps.decay[i + lane] = fill(decays[lane]);
    }
    int64_t n = 0;
    for (; n + 8 <= a.states; n += 8) walk<8>(steps, state.data() + n * ACROSS, n);
    for (; n + 2 <= a.states; n += 2) walk<2>(steps, state.data() + n * ACROSS, n);
    for (; n < a.states; ++n) walk<1>(steps, state.data() + n * ACROSS, n);
    for (int64_t i = 0; i < steps.count; ++i) {
      const int64_t t = a.backward ? a.length - 1 - begin - i : begin + i;
      for (int j = 0; j < VECS; ++j) store(tile + j * LANES, steps.y[i][j]);
      std::copy_n(tile, width, a.out + ((batch * a.length + t) * a.heads + head) * a.channels + first);
    }
  }
  for (int64_t n = 0; n < a.states; ++n)
    std::copy_n(state.data() + n * ACROSS, width, a.last + place + n * a.channels);
}

}  // namespace
}  // namespace foveal

extern "C" {

// Returns 0, or 1 if memory ran out.
int foveal_decayed_attention(const Attention* a, int threads) {
  return foveal::code_of([&] {
    const int64_t parts = (a->channels + foveal::ACROSS - 1) / foveal::ACROSS;
    foveal::parallel(a->batch * a->heads * parts, threads, [&](int64_t task) {
      const int64_t which = task / parts;
      foveal::attend(*a, which / a->heads, which % a->heads, task % parts * foveal::ACROSS);
    });
  });
}
}
