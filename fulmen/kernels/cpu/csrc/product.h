// The one product behind linear and experts: rows of activations times a panel of columns.
//
// A panel is up to four blocks of 16 packed columns. K is walked in blocks whose weights fit the
// first-level cache; the float32 sums wait in c between blocks. Every output value is one chain of
// operations in the order of K, whatever the number of rows or columns beside it, so one row and a
// thousand give the same bits. Integer products are exact, so for them only the order of the groups
// matters.
#pragma once

#include "integer.h"
#include "operand.h"
#include "registers.h"
#ifdef FULMEN_AMX
#include "tiles.h"
#endif

namespace ISA {

#ifdef FULMEN_AMX

template <bool kTwoRows, bool kTwoBlocks>
static inline void tile_square(TileRows x, const uint8_t* w, int64_t stride, int64_t k, float* c) {
  constexpr int64_t row = kPanel * 4;
  tile_load<0>(c, row);
  if (kTwoBlocks) tile_load<1>(c + kLanes, row);
  if (kTwoRows) tile_load<2>(c + 16 * kPanel, row);
  if (kTwoRows && kTwoBlocks) tile_load<3>(c + 16 * kPanel + kLanes, row);
  for (int64_t i = 0; i < k / 32; ++i) {
    tile_load<4>(x.data + 64 * i, x.stride);
    tile_load<6>(w + 1024 * i, 64);
    tile_dot_bf16<0, 4, 6>();
    if (kTwoBlocks) tile_load<7>(w + stride + 1024 * i, 64);
    if (kTwoBlocks) tile_dot_bf16<1, 4, 7>();
    if (kTwoRows) tile_load<5>(x.data + 16 * x.stride + 64 * i, x.stride);
    if (kTwoRows) tile_dot_bf16<2, 5, 6>();
    if (kTwoRows && kTwoBlocks) tile_dot_bf16<3, 5, 7>();
  }
  tile_store<0>(c, row);
  if (kTwoBlocks) tile_store<1>(c + kLanes, row);
  if (kTwoRows) tile_store<2>(c + 16 * kPanel, row);
  if (kTwoRows && kTwoBlocks) tile_store<3>(c + 16 * kPanel + kLanes, row);
}

// c += x w over one K block of at most 256 inputs
static inline void tile_bf16(const uint8_t* const* x, int64_t rows, int blocks, int64_t offset,
                             const uint8_t* w, int64_t stride, int64_t k, float* c,
                             NextWeights& next) {
  alignas(64) uint8_t gathered[32 * kTileBytes];
  int configured = 0;
  for (int64_t r = 0; r < rows; r += 32) {
    const int some = int(least(32, rows - r));
    if (some != configured) configure(some);
    configured = some;
    const TileRows a = even_rows(x + r, some, 2 * offset, 2 * k, gathered);
    for (int b = 0; b < blocks; b += 2) {
      const uint8_t* weights = w + b * stride;
      float* to = c + r * kPanel + b * kLanes;
      const bool two = b + 1 < blocks;
      if (some > 16)
        two ? tile_square<true, true>(a, weights, stride, k, to)
            : tile_square<true, false>(a, weights, stride, k, to);
      else
        two ? tile_square<false, true>(a, weights, stride, k, to)
            : tile_square<false, false>(a, weights, stride, k, to);
    }
    for (int i = 0; i < 32 / kTileRows; ++i) next.ask();
  }
  release_tiles();
}

#endif

static inline void bf16_block(const uint8_t* const* x, int64_t rows, int blocks, int64_t offset,
                              const uint8_t* w, int64_t stride, int64_t k, float* c,
                              NextWeights& next) {
#ifdef FULMEN_AMX
  tile_bf16(x, rows, blocks, offset, w, stride, k, c, next);
#else
  tile_all<TileBF16>(rows, blocks, x, offset, w, stride, k, c, next);
#endif
}

// FP8 for few rows, straight into registers.
template <int R, int B>
static inline void fp8_stream(const uint8_t* const* x, const Operand& o, const Matrix& w,
                              const uint8_t* data, int64_t stride, float* c, const uint8_t* then) {
  const int64_t group_bytes = 16 * w.group;
  const Ahead ahead(data, then, o.k / w.group, group_bytes);
  V sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = zero();
  for (int64_t g = 0; g < o.k / w.group; ++g) {
    const uint8_t* asked = ahead.block(g) + (ahead.group(g) - g) * group_bytes;
    V part[R][B];
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) part[r][b] = zero();
    for (int64_t i = g * w.group / 2; i < (g + 1) * w.group / 2; ++i) {
      for (int b = 0; b < B; ++b) {
        const Pairs weights = load_fp8(data + b * stride + i * 32);
        prefetch(asked + b * stride + i * 32);
        for (int r = 0; r < R; ++r) {
          if (o.wide) {
            const float* a = (const float*)x[r] + 2 * i;
            part[r][b] = fma(set1(a[1]), odd(weights), fma(set1(a[0]), even(weights), part[r][b]));
          } else {
            part[r][b] = dot(part[r][b], set1_pair(x[r] + 4 * i), weights);
          }
        }
      }
    }
    for (int b = 0; b < B; ++b) {
      const float* scales = (const float*)(data + b * stride + o.k * 16) + g * kLanes;
      prefetch(scales + kLanes);
      const V scale = load(scales);
      for (int r = 0; r < R; ++r) sums[r][b] = fma(part[r][b], scale, sums[r][b]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) store(c + r * kPanel + b * kLanes, sums[r][b]);
}

struct FP8Stream {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, const Operand& o, const Matrix& w,
                         const uint8_t* data, int64_t stride, float* c, const uint8_t* then) {
    fp8_stream<R, B>(x, o, w, data, stride, c, then);
  }
};

static inline void fp8_panel(const uint8_t* const* x, int64_t rows, const Operand& o,
                             const Matrix& w, const uint8_t* data, int64_t stride, int blocks,
                             float* c, PanelScratch& s, const uint8_t* then) {
#ifdef FULMEN_AMX
  const bool streams =
      o.wide && rows <= kStreamRows;  // the tiles add pairs in an order of their own
#else
  const bool streams = rows <= kStreamRows;
#endif
  if (streams) return stream_panel<FP8Stream>(x, rows, o, w, data, stride, blocks, c, then);
  const int64_t groups = o.k / w.group, wide_stride = 32 * kMaxGroup;
  NextWeights none(nullptr, 0, 0, 0, 1);
  for (int64_t g = 0; g < groups; ++g) {
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* block = data + b * stride;
      for (int i = 0; i < w.group / 2; ++i)
        store_pairs((uint8_t*)s.bf16 + b * wide_stride + i * 64,
                    load_fp8(block + (g * w.group / 2 + i) * 32));
      store(s.scales + b * kLanes, load((const float*)(block + o.k * 16) + g * kLanes));
    }
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int some = int(least(kTileRows, rows - r));
      memset(s.block_sums, 0, sizeof(float) * size_t(some) * kPanel);
      const uint8_t* weights = (const uint8_t*)s.bf16;
      if (o.wide)
        tile_rows<TileWide>(some, blocks, x + r, g * w.group, weights, wide_stride, w.group,
                            s.block_sums);
      else
        bf16_block(x + r, some, blocks, g * w.group, weights, wide_stride, w.group, s.block_sums,
                   none);
      for (int i = 0; i < some; ++i)
        for (int b = 0; b < blocks; ++b) {
          float* to = c + (r + i) * kPanel + b * kLanes;
          store(to, fma(load(s.block_sums + i * kPanel + b * kLanes), load(s.scales + b * kLanes),
                        load(to)));
        }
    }
  }
}

// Panel p of a matrix; past its end the last one, for hints.
static inline const uint8_t* panel_data(const Matrix& w, int64_t p) {
  return w.data + least(p, (num_blocks(w) - 1) / kPanelBlocks) * kPanelBlocks * block_bytes(w);
}

#if defined(FULMEN_BF16) || defined(FULMEN_AMX)
constexpr bool kWidensPairs = false;
#else
constexpr bool kWidensPairs = true;
#endif
#ifdef FULMEN_AVX512
constexpr int64_t kF32Step = 128;  // inputs in a block of K
#else
constexpr int64_t kF32Step = 256;  // 16 columns of them are half of the first-level cache
#endif
constexpr int64_t kWidenRows = 12;  // fewer are not worth widening a panel for

// bf16 weights for many rows where no instruction multiplies pairs: a block of K is widened once
// and multiplied as float32, in the order in which pairs would be.
static __attribute__((noinline)) void widened_panel(const uint8_t* const* x, int64_t rows,
                                                    const Operand& o, const uint8_t* data,
                                                    int64_t stride, int blocks, float* c) {
  alignas(64) float weights[kPanelBlocks * kF32Step * kLanes];
  alignas(64) float wide[kSumRows * kF32Step];
  const uint8_t* pointers[kSumRows];
  NextWeights none(nullptr, 0, 0, 0, 1);
  for (int64_t k = 0; k < o.k; k += kF32Step) {
    const int64_t size = least(kF32Step, o.k - k);
    for (int b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < size / 2; ++i) {
        const Pairs pairs = load_pairs(data + b * stride + k * 32 + i * 64);
        float* to = weights + (b * kF32Step + 2 * i) * kLanes;
        store(to, even(pairs));
        store(to + kLanes, odd(pairs));
      }
    for (int64_t r = 0; r < rows; ++r) {
      if (o.wide) {
        pointers[r] = x[r] + 4 * k;
        continue;
      }
      const uint16_t* from = (const uint16_t*)x[r] + k;
      float* to = wide + r * kF32Step;
      for (int64_t i = 0; i < size; i += kLanes) store(to + i, load(from + i));
      pointers[r] = (const uint8_t*)to;
    }
    tile_f32(rows, blocks, pointers, 0, (const uint8_t*)weights, kF32Step * kLanes * 4, size, c,
             none);
  }
}

// Rows that a panel takes at a time where there are so many: alike, as few as the last would cost
// as much as many.
static inline int64_t share_of(int64_t rows) {
  const int64_t parts = most(1, (rows + kSumRows - 1) / kSumRows);
  return most(1, least(kSumRows, round_up((rows + parts - 1) / parts, 6)));
}

// c (rows, kPanel) = x w^T for the blocks from first_block; every row of x in o's layout, at most
// kSumRows. `then` is the panel, of the same shape, that this thread will probably read next: a
// hint, which only rounded weights take.
static void panel(const uint8_t* const* x, int64_t rows, const Operand& o, const Matrix& w,
                  int64_t first_block, int blocks, float* c, const uint8_t* then) {
  const int64_t stride = block_bytes(w);
  const uint8_t* data = w.data + first_block * stride;
  memset(c, 0, sizeof(float) * size_t(rows) * kPanel);
  PanelScratch s;
  if (o.integer) return integer_panel(x, rows, o, w, data, stride, blocks, c, s, then);
  if (w.format == fulmen::kFP8) return fp8_panel(x, rows, o, w, data, stride, blocks, c, s, then);
  const bool is_f32 = w.format == fulmen::kF32;
  if (kWidensPairs && !is_f32 && rows >= kWidenRows)
    return widened_panel(x, rows, o, data, stride, blocks, c);
  const int64_t step = is_f32 ? kF32Step : 256, bytes = is_f32 ? 64 : 32;  // of an input in a block
  const int more =
      int(least(blocks, num_blocks(w) - first_block - blocks));  // of the panel after this
  for (int64_t k = 0; k < o.k; k += step) {
    const int64_t size = least(step, o.k - k), after = least(step, o.k - k - size);
    NextWeights next =
        after > 0 ? NextWeights(data + (k + size) * bytes, stride, after * bytes, blocks, rows)
                  : NextWeights(more > 0 ? data + blocks * stride : nullptr, stride,
                                least(step, o.k) * bytes, more, rows);
    if (is_f32)
      tile_f32(rows, blocks, x, k, data + k * 64, stride, size, c, next);
    else if (o.wide)
      tile_all<TileWide>(rows, blocks, x, k, data + k * 32, stride, size, c, next);
    else
      bf16_block(x, rows, blocks, k, data + k * 32, stride, size, c, next);
  }
}

}  // namespace ISA
