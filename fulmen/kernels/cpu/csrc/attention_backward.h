// Gradients of causal softmax attention over whole sequences.
//
// A task is one key-value head of one sequence. For each query head and each 64 queries it walks
// the 64-key tiles: with s = q k^T / sqrt(D), p = softmax(s), of which the forward pass left
// maximum and sum of each row, and delta = sum of dout out over a row,
//   dv = p^T dout,  ds = p (dout v^T - delta) / sqrt(D),  dq = ds k,  dk = ds^T q.
// All in float32; the weights are not rounded as the forward pass rounds them. What no query sees
// is not multiplied, to a few rows: short sequences are mostly the triangle of a tile.
#pragma once

#include "attention.h"
#include "attention_args.h"

namespace ISA {
namespace attention {

using fulmen::AttentionBackwardArgs;

constexpr int64_t kTile = 64;
constexpr int64_t kTall = 6;  // rows of a product beside each other; the last of a tile are four

// An operand: element (r, i) is at r * row + i * step.
struct Side {
  const float* data;
  int64_t row, step;
};

// out (R, 16 C) = a (R, steps) b (steps, 16 C), or += it
template <int R, int C>
static __attribute__((noinline)) void tile_sums(float* out, int64_t out_stride, Side a,
                                                const float* b, int64_t b_stride, int64_t steps,
                                                bool adds) {
  V acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = adds ? load(out + r * out_stride + c * kLanes) : zero();
  const float* left = a.data;
  for (int64_t i = 0; i < steps; ++i) {
    V right[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) right[c] = load(b + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V value = set1(left[r * a.row]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(value, right[c], acc[r][c]);
    }
    left += a.step;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + r * out_stride + c * kLanes, acc[r][c]);
}

template <int R>
static inline void tile_row(float* out, int64_t out_stride, Side a, const float* b,
                            int64_t b_stride, int64_t steps, int64_t columns, bool adds) {
  int64_t c = 0;
  for (; c + kColumns * kLanes <= columns; c += kColumns * kLanes)
    tile_sums<R, kColumns>(out + c, out_stride, a, b + c, b_stride, steps, adds);
  for (; c < columns; c += kLanes)
    tile_sums<R, 1>(out + c, out_stride, a, b + c, b_stride, steps, adds);
}

// One past the last row of the tile that begins at `row`: six rows, or four at the end.
static inline int64_t tile_end(int64_t row, int64_t rows) {
  return row + (rows - row > 4 ? kTall : 4);
}

// What is multiplied of a tile of rows: columns of the output, and steps first to last.
struct Extent {
  int64_t columns, first, last;
};

// out (rows, columns) = a b, or += it, tile by tile; extent_of(row, end) gives the extent of each.
template <class ExtentOf>
static inline void tile_product(float* out, int64_t out_stride, Side a, const float* b,
                                int64_t b_stride, int64_t rows, bool adds,
                                const ExtentOf& extent_of) {
  for (int64_t row = 0; row < rows;) {
    const int64_t end = tile_end(row, rows);
    const Extent extent = extent_of(row, end);
    const Side left{a.data + row * a.row + extent.first * a.step, a.row, a.step};
    const float* right = b + extent.first * b_stride;
    const int64_t steps = extent.last - extent.first;
    if (end - row == kTall)
      tile_row<kTall>(out + row * out_stride, out_stride, left, right, b_stride, steps,
                      extent.columns, adds);
    else
      tile_row<4>(out + row * out_stride, out_stride, left, right, b_stride, steps, extent.columns,
                  adds);
    row = end;
  }
}

// to (64, padded) = up to 64 rows of one head, widened; the rest is zero.
template <class T>
static inline void gather(const T* from, int64_t count, int64_t stride, int64_t dim, int64_t padded,
                          float* to) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t d = 0; d < padded; d += kLanes)
      store(to + r * padded + d, d + kLanes <= dim
                                     ? load(from + r * stride + d)
                                     : load_n(from + r * stride + d, int(most(0, dim - d))));
  memset(to + count * padded, 0, size_t((kTile - count) * padded) * sizeof(float));
}

// to (padded, 64) = from (64, padded) transposed
static inline void transpose_tile(const float* from, int64_t padded, float* to) {
  for (int64_t r = 0; r < kTile; r += kLanes)
    for (int64_t d = 0; d < padded; d += kLanes) {
      V square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) square[i] = load(from + (r + i) * padded + d);
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store(to + (d + i) * kTile + r, square[i]);
    }
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
  int64_t dim = args.head_dim, padded = fulmen::padded_dim(dim), size = kTile * padded,
          group = args.num_heads / args.num_kv_heads;
  int64_t q_stride = args.num_heads * dim, kv_stride = args.num_kv_heads * dim;
  int64_t first_key = begin * kv_stride + kv_head * dim;
  float scale = 1.0f / __builtin_sqrtf(float(dim)), log2_scale = scale * 1.44269504088896341f;
  bool wants_scores = args.dq != nullptr || args.dk != nullptr;

  float *q, *dout, *dq;     // (64, padded) of the queries at hand
  float *scores, *dscores;  // (64, 64)
  float *k, *kt, *vt;       // (tiles, 64, padded), and transposed: (tiles, padded, 64)
  float *dk, *dv;           // (tiles, 64, padded)
  float peak[kTile], inverse[kTile],
      delta[kTile];  // of each row: its maximum, 1 / its sum, dout out

  static int64_t floats(int64_t padded, int64_t tiles) {
    return 3 * kTile * padded + 2 * kTile * kTile + 5 * tiles * kTile * padded;
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
    float** const rows[] = {&q, &dout, &dq};
    float** const squares[] = {&scores, &dscores};
    float** const whole[] = {&k, &kt, &vt, &dk, &dv};
    for (float** piece : rows) *piece = take(size);
    for (float** piece : squares) *piece = take(kTile * kTile);
    for (float** piece : whole) *piece = take(tiles * size);
    memset(dk, 0, size_t(2 * tiles * size) * sizeof(float));
    for (int64_t j = 0; j < tiles; ++j) take_keys(j);
  }

  int64_t count_of(int64_t tile) const { return least(kTile, length - tile * kTile); }
  int64_t place(int64_t head, int64_t tile) const {
    return (begin + tile * kTile) * q_stride + head * dim;
  }

  void take_keys(int64_t j) {
    const int64_t from = first_key + j * kTile * kv_stride, count = count_of(j);
    float* values = k + j * size;  // for a moment
    gather((const T*)args.v + from, count, kv_stride, dim, padded, values);
    transpose_tile(values, padded, vt + j * size);
    gather((const T*)args.k + from, count, kv_stride, dim, padded, k + j * size);
    transpose_tile(k + j * size, padded, kt + j * size);
  }

  // Queries of tile i, and what is known of their rows.
  void take_queries(int64_t head, int64_t i) {
    const int64_t from = place(head, i), count = count_of(i);
    gather((const T*)args.q + from, count, q_stride, dim, padded, q);
    gather((const T*)args.dout + from, count, q_stride, dim, padded, dout);
    for (int64_t r = 0; r < kTile; ++r) {
      peak[r] = inverse[r] = delta[r] = 0.0f;
      if (r >= count) continue;
      const T* out = (const T*)args.out + from + r * q_stride;
      V dots = zero();
      for (int64_t d = 0; d < dim; d += kLanes)
        dots = fma(load(dout + r * padded + d), load_n(out + d, int(least(kLanes, dim - d))), dots);
      const float* sums = args.row_sums + ((begin + i * kTile + r) * args.num_heads + head) * 2;
      delta[r] = sum(dots);
      peak[r] = sums[0];
      inverse[r] = 1.0f / sums[1];
    }
  }

  // The weights and the gradients of the scores of tile i with tile j.
  void make_scores(int64_t i, int64_t j) {
    const int64_t count = count_of(i);
    const auto seen = [&](int64_t, int64_t end) {
      return Extent{i == j ? least(kTile, round_up(end, kLanes)) : kTile, 0, padded};
    };
    tile_product(scores, kTile, {q, padded, 1}, kt + j * size, kTile, count, false, seen);
    if (wants_scores)
      tile_product(dscores, kTile, {dout, padded, 1}, vt + j * size, kTile, count, false, seen);
    for (int64_t row = 0; row < count;) {
      const int64_t end = tile_end(row, count), columns = seen(row, end).columns;
      for (int64_t r = row; r < end; ++r) {
        const int visible = r >= count ? 0 : i == j ? int(r + 1) : int(kTile);
        const V row_peak = set1(-peak[r]), row_inverse = set1(inverse[r]), dots = set1(delta[r]);
        for (int64_t c = 0; c < columns; c += kLanes) {
          float *s = scores + r * kTile + c, *ds = dscores + r * kTile + c;
          const int n = visible - int(c);
          const V e = exp2_down(fma(load(s), set1(log2_scale), row_peak));
          const V p = first_of(n, mul(e, row_inverse), zero());
          store(s, p);
          if (!wants_scores) continue;
          const V change = mul(sub(load(ds), dots), set1(scale));
          store(ds, first_of(n, mul(p, change), zero()));
        }
      }
      row = end;
    }
  }

  // The share of tiles i and j in dq, dk and dv.
  void add_gradients(int64_t i, int64_t j) {
    const bool is_diagonal = i == j;
    const int64_t count = count_of(i);
    if (args.dq != nullptr)
      tile_product(dq, padded, {dscores, kTile, 1}, k + j * size, padded, count, true,
                   [&](int64_t, int64_t end) {
                     return Extent{padded, 0, is_diagonal ? least(end, count) : kTile};
                   });
    // Keys of a tile see the queries from their own position on.
    const auto later = [&](int64_t row, int64_t) {
      return Extent{padded, is_diagonal ? row : 0, count};
    };
    const int64_t keys = is_diagonal ? count : kTile;
    if (args.dk != nullptr)
      tile_product(dk + j * size, padded, {dscores, 1, kTile}, q, padded, keys, true, later);
    if (args.dv != nullptr)
      tile_product(dv + j * size, padded, {scores, 1, kTile}, dout, padded, keys, true, later);
  }

  void run() {
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t i = 0; i < tiles; ++i) {
        take_queries(head, i);
        memset(dq, 0, size_t(size) * sizeof(float));
        for (int64_t j = 0; j <= i; ++j) {
          make_scores(i, j);
          add_gradients(i, j);
        }
        if (args.dq != nullptr)
          scatter(dq, count_of(i), q_stride, dim, padded, (T*)args.dq + place(head, i));
      }
    if (args.dk != nullptr) scatter(dk, length, kv_stride, dim, padded, (T*)args.dk + first_key);
    if (args.dv != nullptr) scatter(dv, length, kv_stride, dim, padded, (T*)args.dv + first_key);
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
