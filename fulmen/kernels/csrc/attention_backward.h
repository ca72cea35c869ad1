// Gradients of causal softmax attention over whole sequences.
//
// A task is one key-value head of one sequence. For each query head and each 64 queries it walks the
// 64-key tiles twice: first for the maximum and sum of each row, then, with s = q k^T / sqrt(D),
// p = softmax(s) and delta = sum of dout out over a row, for
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
static inline void tile_product(float* out, const float* a, const float* b, int64_t steps, int64_t columns, bool adds) {
  const float ones[kBackwardTileRows] = {1.0f, 1.0f, 1.0f, 1.0f};
  for (int64_t r = 0; r < kTile; r += kBackwardTileRows)
    multiply_all<kBackwardTileRows>(out + r * columns, columns, adds ? ones : nullptr, a + r * steps, steps, b, b, columns, steps,
                                    columns);
}

// to (64, padded) = up to 64 rows of one head, widened; what is not there is zero.
template <class T>
static inline void gather(const T* from, int64_t count, int64_t stride, int64_t dim, int64_t padded, float* to) {
  memset(to, 0, size_t(kTile * padded) * sizeof(float));
  for (int64_t r = 0; r < count; ++r) copy_row(to + r * padded, from + r * stride, dim);
}

template <class T>
static inline void scatter(const float* from, int64_t count, int64_t stride, int64_t dim, int64_t padded, T* to) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t d = 0; d < dim; d += kLanes) store_n(to + r * stride + d, load(from + r * padded + d), int(least(kLanes, dim - d)));
}

// The memory of a task, in floats.
struct BackwardTiles {
  float *q, *dout, *dq;         // (64, padded) of the queries at hand
  float *k, *kt, *vt;           // (64, padded), (padded, 64), (padded, 64) of the keys at hand
  float *scores, *ds, *turned;  // (64, 64)
  float *dk, *dv;               // (tiles of the sequence, 64, padded)

  static int64_t floats(int64_t padded, int64_t tiles) { return 6 * kTile * padded + 3 * kTile * kTile + 2 * tiles * kTile * padded; }

  BackwardTiles(float* memory, int64_t padded, int64_t tiles) {
    auto take = [&](int64_t count) {
      float* piece = memory;
      memory += count;
      return piece;
    };
    float** const rows[] = {&q, &dout, &dq, &k, &kt, &vt};
    float** const squares[] = {&scores, &ds, &turned};
    for (float** piece : rows) *piece = take(kTile * padded);
    for (float** piece : squares) *piece = take(kTile * kTile);
    dk = take(tiles * kTile * padded);
    dv = take(tiles * kTile * padded);
  }
};

template <class T>
static void attend_backward(const AttentionBackwardArgs& args, int64_t sequence, int64_t kv_head, int thread) {
  const int64_t begin = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - begin;
  const int64_t dim = args.head_dim, padded = fulmen::padded_dim(dim), tiles = (length + kTile - 1) / kTile;
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t q_stride = args.num_heads * dim, kv_stride = args.num_kv_heads * dim;
  const float scale = 1.0f / __builtin_sqrtf(float(dim)), log2e = 1.44269504088896341f;
  BackwardTiles t((float*)fulmen::scratch(thread, 0, size_t(BackwardTiles::floats(padded, tiles)) * sizeof(float)), padded, tiles);
  memset(t.dk, 0, size_t(2 * tiles * kTile * padded) * sizeof(float));
  const int64_t kv = begin * kv_stride + kv_head * dim;

  auto count_of = [&](int64_t tile) { return least(kTile, length - tile * kTile); };
  auto take_keys = [&](int64_t tile) {
    gather((const T*)args.k + kv + tile * kTile * kv_stride, count_of(tile), kv_stride, dim, padded, t.k);
    transpose(t.k, kTile, padded, padded, t.kt, kTile, fulmen::kFloat32);
  };
  // Row r sees so many keys of a tile: none where it is no query.
  auto visible = [&](int64_t row_tile, int64_t r, int64_t tile) {
    return row_tile * kTile + r >= length ? 0 : most(0, least(kTile, (row_tile - tile) * kTile + r + 1));
  };

  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t rows = count_of(i), place = (begin + i * kTile) * q_stride + head * dim;
      float peak[kTile], inverse[kTile], delta[kTile];
      gather((const T*)args.q + place, rows, q_stride, dim, padded, t.q);
      gather((const T*)args.dout + place, rows, q_stride, dim, padded, t.dout);
      gather((const T*)args.out + place, rows, q_stride, dim, padded, t.dq);
      for (int64_t r = 0; r < kTile; ++r) {
        V dots = zero();
        for (int64_t d = 0; d < padded; d += kLanes) dots = fma(load(t.dout + r * padded + d), load(t.dq + r * padded + d), dots);
        delta[r] = sum(dots);
        peak[r] = -__builtin_inff();
        inverse[r] = 0.0f;
      }
      for (int64_t j = 0; j <= i; ++j) {
        take_keys(j);
        tile_product(t.scores, t.q, t.kt, padded, kTile, false);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t seen = visible(i, r, j);
          float* s = t.scores + r * kTile;
          V highest = set1(-__builtin_inff());
          for (int64_t c = 0; c < kTile; c += kLanes) highest = max(first_of(int(seen - c), load(s + c), highest), highest);
          const float here = quick_largest(highest) * scale * log2e, before = peak[r];
          peak[r] = here > before ? here : before;
          V total = zero();
          for (int64_t c = 0; c < kTile; c += kLanes)
            total = add(total, first_of(int(seen - c), exp2_down(fma(load(s + c), set1(scale * log2e), set1(-peak[r]))), zero()));
          float shrink[kLanes];
          store(shrink, exp2_down(set1(before - peak[r])));
          inverse[r] = inverse[r] * shrink[0] + sum(total);
        }
      }
      for (int64_t r = 0; r < rows; ++r) inverse[r] = 1.0f / inverse[r];

      memset(t.dq, 0, size_t(kTile * padded) * sizeof(float));
      for (int64_t j = 0; j <= i; ++j) {
        gather((const T*)args.v + kv + j * kTile * kv_stride, count_of(j), kv_stride, dim, padded, t.k);
        transpose(t.k, kTile, padded, padded, t.vt, kTile, fulmen::kFloat32);
        take_keys(j);
        tile_product(t.scores, t.q, t.kt, padded, kTile, false);
        tile_product(t.ds, t.dout, t.vt, padded, kTile, false);
        for (int64_t r = 0; r < kTile; ++r) {
          const int64_t seen = visible(i, r, j);
          float *s = t.scores + r * kTile, *ds = t.ds + r * kTile;
          for (int64_t c = 0; c < kTile; c += kLanes) {
            if (c >= seen) {
              store(s + c, zero());
              store(ds + c, zero());
              continue;
            }
            const V p = mul(exp2_down(fma(load(s + c), set1(scale * log2e), set1(-peak[r]))), set1(inverse[r]));
            const V shared = first_of(int(seen - c), p, zero());
            const V slope = mul(sub(load(ds + c), set1(delta[r])), set1(scale));
            store(s + c, shared);
            store(ds + c, first_of(int(seen - c), mul(p, slope), zero()));
          }
        }
        tile_product(t.dq, t.ds, t.k, kTile, padded, true);
        transpose(t.ds, kTile, kTile, kTile, t.turned, kTile, fulmen::kFloat32);
        tile_product(t.dk + j * kTile * padded, t.turned, t.q, kTile, padded, true);
        transpose(t.scores, kTile, kTile, kTile, t.turned, kTile, fulmen::kFloat32);
        tile_product(t.dv + j * kTile * padded, t.turned, t.dout, kTile, padded, true);
      }
      scatter(t.dq, rows, q_stride, dim, padded, (T*)args.dq + place);
    }
  }
  scatter(t.dk, length, kv_stride, dim, padded, (T*)args.dk + kv);
  scatter(t.dv, length, kv_stride, dim, padded, (T*)args.dv + kv);
}

static void attend_backward_task(void* context, int64_t task, int thread) {
  const AttentionBackwardArgs& args = *(const AttentionBackwardArgs*)context;
  const int64_t sequence = task / args.num_kv_heads, head = task % args.num_kv_heads;
  if (args.dtype == fulmen::kBFloat16) attend_backward<uint16_t>(args, sequence, head, thread);
  else attend_backward<float>(args, sequence, head, thread);
}

}  // namespace attention

static void softmax_attention_backward(const fulmen::AttentionBackwardArgs& args) {
  fulmen::parallel(args.num_sequences * args.num_kv_heads, attention::attend_backward_task, (void*)&args);
}

}  // namespace ISA
