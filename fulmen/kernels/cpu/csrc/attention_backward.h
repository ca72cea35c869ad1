// Gradients of causal softmax attention over whole sequences.
//
// A task is one key-value head of one sequence. For each query head and each 64 queries it walks
// the 64-key tiles twice: first for the maximum and sum of each row, then, with s = q k^T /
// sqrt(D), p = softmax(s) and delta = sum of dout out over a row, for
//   dv = p^T dout,  ds = p (dout v^T - delta) / sqrt(D),  dq = ds k,  dk = ds^T q.
// All in float32; the weights are not rounded as the forward pass rounds them.
#pragma once

#include "attention.h"
#include "attention_args.h"
#include "transpose.h"

namespace ISA {
namespace attention {

using fulmen::AttentionBackwardArgs;

constexpr int64_t kTile = 64;
constexpr int kBackwardTileRows = 4;

// out (64, columns) = a (64, steps) b (steps, columns), or += it. All rows lie `columns` or, for a,
// `steps` floats apart, both multiples of 16.
static inline void tile_product(float* out, const float* a, const float* b, int64_t steps,
                                int64_t columns, bool adds) {
  const float ones[kBackwardTileRows] = {1.0f, 1.0f, 1.0f, 1.0f};
  for (int64_t r = 0; r < kTile; r += kBackwardTileRows)
    multiply_all<kBackwardTileRows>(out + r * columns, columns, adds ? ones : nullptr,
                                    a + r * steps, steps, b, b, columns, steps, columns);
}

// to (64, padded) = up to 64 rows of one head, widened; the rest is zero.
template <class T>
static inline void gather(const T* from, int64_t count, int64_t stride, int64_t dim, int64_t padded,
                          float* to) {
  memset(to, 0, size_t(kTile * padded) * sizeof(float));
  for (int64_t r = 0; r < count; ++r) copy_row(to + r * padded, from + r * stride, dim);
}

template <class T>
static inline void scatter(const float* from, int64_t count, int64_t stride, int64_t dim,
                           int64_t padded, T* to) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t d = 0; d < dim; d += kLanes)
      store_n(to + r * stride + d, load(from + r * padded + d), int(least(kLanes, dim - d)));
}

// One key-value head of one sequence.
template <class T>
struct HeadGradient {
  const AttentionBackwardArgs& args;
  int64_t begin, length, tiles, kv_head;
  int64_t dim = args.head_dim, padded = fulmen::padded_dim(dim),
          group = args.num_heads / args.num_kv_heads;
  int64_t q_stride = args.num_heads * dim, kv_stride = args.num_kv_heads * dim;
  int64_t first_key = begin * kv_stride + kv_head * dim;
  float scale = 1.0f / __builtin_sqrtf(float(dim)), log2_scale = scale * 1.44269504088896341f;

  float *q, *dout, *out, *dq;            // (64, padded) of the queries at hand
  float *k, *kt, *v, *vt;                // (64, padded), (padded, 64) of the keys at hand
  float *scores, *dscores, *transposed;  // (64, 64)
  float *dk, *dv;                        // (tiles, 64, padded)
  float peak[kTile], inverse[kTile],
      delta[kTile];  // of each row: its maximum, 1 / its sum, dout out

  static int64_t floats(int64_t padded, int64_t tiles) {
    return 8 * kTile * padded + 3 * kTile * kTile + 2 * tiles * kTile * padded;
  }

  HeadGradient(const AttentionBackwardArgs& args, int64_t sequence, int64_t kv_head, int thread)
      : args(args),
        begin(args.cu_seqlens[sequence]),
        length(args.cu_seqlens[sequence + 1] - begin),
        tiles((length + kTile - 1) / kTile),
        kv_head(kv_head) {
    float* memory =
        (float*)fulmen::scratch(thread, 0, size_t(floats(padded, tiles)) * sizeof(float));
    auto take = [&](int64_t count) {
      float* piece = memory;
      memory += count;
      return piece;
    };
    float** const rows[] = {&q, &dout, &out, &dq, &k, &kt, &v, &vt};
    float** const squares[] = {&scores, &dscores, &transposed};
    for (float** piece : rows) *piece = take(kTile * padded);
    for (float** piece : squares) *piece = take(kTile * kTile);
    dk = take(tiles * kTile * padded);
    dv = take(tiles * kTile * padded);
    memset(dk, 0, size_t(2 * tiles * kTile * padded) * sizeof(float));
  }

  int64_t count_of(int64_t tile) const { return least(kTile, length - tile * kTile); }
  int64_t place(int64_t head, int64_t tile) const {
    return (begin + tile * kTile) * q_stride + head * dim;
  }

  // Number of keys of tile j that row r of tile i sees; none where there is no query.
  int64_t visible(int64_t i, int64_t r, int64_t j) const {
    return i * kTile + r >= length ? 0 : most(0, least(kTile, (i - j) * kTile + r + 1));
  }

  void take_queries(int64_t head, int64_t i) {
    const int64_t from = place(head, i), count = count_of(i);
    gather((const T*)args.q + from, count, q_stride, dim, padded, q);
    gather((const T*)args.dout + from, count, q_stride, dim, padded, dout);
    gather((const T*)args.out + from, count, q_stride, dim, padded, out);
  }

  void take_keys(int64_t j) {
    gather((const T*)args.k + first_key + j * kTile * kv_stride, count_of(j), kv_stride, dim,
           padded, k);
    transpose(k, kTile, padded, padded, kt, kTile, fulmen::kFloat32);
  }

  void take_values(int64_t j) {
    gather((const T*)args.v + first_key + j * kTile * kv_stride, count_of(j), kv_stride, dim,
           padded, v);
    transpose(v, kTile, padded, padded, vt, kTile, fulmen::kFloat32);
  }

  // e^(score / sqrt(D) - the maximum of row r), for sixteen keys
  V weights(const float* of, int64_t r) const {
    return exp2_down(fma(load(of), set1(log2_scale), set1(-peak[r])));
  }

  // First walk: maximum and sum of each row of tile i, in base 2, and delta.
  void measure_rows(int64_t i) {
    for (int64_t r = 0; r < kTile; ++r) {
      V dots = zero();
      for (int64_t d = 0; d < padded; d += kLanes)
        dots = fma(load(dout + r * padded + d), load(out + r * padded + d), dots);
      delta[r] = sum(dots);
      peak[r] = -__builtin_inff();
      inverse[r] = 0.0f;
    }
    for (int64_t j = 0; j <= i; ++j) {
      take_keys(j);
      tile_product(scores, q, kt, padded, kTile, false);
      for (int64_t r = 0; r < count_of(i); ++r) add_to_row(scores + r * kTile, r, visible(i, r, j));
    }
    for (int64_t r = 0; r < count_of(i); ++r) inverse[r] = 1.0f / inverse[r];
  }

  void add_to_row(const float* s, int64_t r, int64_t seen) {
    V highest = set1(-__builtin_inff());
    for (int64_t c = 0; c < kTile; c += kLanes)
      highest = max(first_of(int(seen - c), load(s + c), highest), highest);
    const float here = quick_largest(highest) * log2_scale, before = peak[r];
    peak[r] = here > before ? here : before;
    V total = zero();
    for (int64_t c = 0; c < kTile; c += kLanes)
      total = add(total, first_of(int(seen - c), weights(s + c, r), zero()));
    float shrink[kLanes];
    store(shrink, exp2_down(set1(before - peak[r])));
    inverse[r] = inverse[r] * shrink[0] + sum(total);
  }

  // Second walk: dq of tile i, and its share of dk and dv.
  void add_gradients(int64_t i) {
    memset(dq, 0, size_t(kTile * padded) * sizeof(float));
    for (int64_t j = 0; j <= i; ++j) {
      take_keys(j);
      take_values(j);
      tile_product(scores, q, kt, padded, kTile, false);
      tile_product(dscores, dout, vt, padded, kTile, false);
      for (int64_t r = 0; r < kTile; ++r) {
        const int64_t seen = visible(i, r, j);
        for (int64_t c = 0; c < kTile; c += kLanes) {
          float *s = scores + r * kTile + c, *ds = dscores + r * kTile + c;
          const int n = int(seen - c);
          const V p = mul(weights(s, r), set1(inverse[r]));
          const V change = mul(sub(load(ds), set1(delta[r])), set1(scale));
          store(s, first_of(n, p, zero()));
          store(ds, first_of(n, mul(p, change), zero()));
        }
      }
      tile_product(dq, dscores, k, kTile, padded, true);
      transpose(dscores, kTile, kTile, kTile, transposed, kTile, fulmen::kFloat32);
      tile_product(dk + j * kTile * padded, transposed, q, kTile, padded, true);
      transpose(scores, kTile, kTile, kTile, transposed, kTile, fulmen::kFloat32);
      tile_product(dv + j * kTile * padded, transposed, dout, kTile, padded, true);
    }
  }

  void run() {
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t i = 0; i < tiles; ++i) {
        take_queries(head, i);
        measure_rows(i);
        add_gradients(i);
        scatter(dq, count_of(i), q_stride, dim, padded, (T*)args.dq + place(head, i));
      }
    scatter(dk, length, kv_stride, dim, padded, (T*)args.dk + first_key);
    scatter(dv, length, kv_stride, dim, padded, (T*)args.dv + first_key);
  }
};

static void attend_backward_task(void* context, int64_t task, int thread) {
  const AttentionBackwardArgs& args = *(const AttentionBackwardArgs*)context;
  const int64_t sequence = task / args.num_kv_heads, head = task % args.num_kv_heads;
  if (args.dtype == fulmen::kBFloat16)
    HeadGradient<uint16_t>(args, sequence, head, thread).run();
  else
    HeadGradient<float>(args, sequence, head, thread).run();
}

}  // namespace attention

static void softmax_attention_backward(const fulmen::AttentionBackwardArgs& args) {
  fulmen::parallel(args.num_sequences * args.num_kv_heads, attention::attend_backward_task,
                   (void*)&args);
}

}  // namespace ISA
