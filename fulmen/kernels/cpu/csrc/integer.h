// Products of int8 and int4 weights: exact within a group of inputs, then one float32 sum over
// groups in their order. So every instruction set, and every number of rows, gives the same bits.
#pragma once

#include "operand.h"
#include "registers.h"
#ifdef FULMEN_AMX
#include "tiles.h"
#endif

namespace ISA {

struct Group {
  int64_t index, offset;  // of the group, and of its first input
  int size;
  const uint8_t* codes;  // int8 layout, block b at codes + b * stride
  int64_t stride;
  const float* scales;   // [blocks][16]
  const float* offsets;  // [blocks][16], null for int8
};

// Sum of a group before the scale of the inputs, from its exact integer sums.
static inline V int8_part(I dots, V scale, int32_t input_sum) {
  return mul(to_float(sub(dots, set1(128 * input_sum))), scale);
}
static inline V int4_part(I dots, V scale, int32_t input_sum, V offset) {
  return fma(to_float(dots), scale, mul(set1(float(input_sum)), offset));
}

// dots (R, B) = one group of codes times one plane of activations. A function of its own, unrolled
// by order and without other arithmetic: else the compiler keeps the sums in memory.
template <int R, int B>
static __attribute__((noinline)) void integer_dots(const uint8_t* const* x, int64_t offset,
                                                   const uint8_t* codes, int64_t stride, int size,
                                                   int32_t* dots) {
  I sums[R][B];
  const uint8_t* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = x[r] + offset;
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sums[r][b] = izero();
  }
  for (int64_t i = 0; i < size / 4; ++i) {
    Quads u[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) u[b] = load_quads(codes + b * stride + i * 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Quads value = set1_quad(a[r] + 4 * i);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) sums[r][b] = dot(sums[r][b], u[b], value);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) store(dots + (r * B + b) * kLanes, sums[r][b]);
}

// c (R rows, B blocks) += one group
template <int R, int B, bool kInt4, int kPlanes>
static inline void add_group(const uint8_t* const* x, const Operand& o, const Group& g,
                             int first_block, float* c) {
  alignas(64) int32_t dots[kPlanes][R * B * kLanes];
  const uint8_t* codes = g.codes + first_block * g.stride;
  for (int p = 0; p < kPlanes; ++p)
    integer_dots<R, B>(x, p * o.k + g.offset, codes, g.stride, g.size, dots[p]);
  const int64_t scale_at = kPlanes * o.k + 4 * g.index, sum_at = scale_at + 4 * o.groups;
  V scales[B], offsets[B];
  for (int b = 0; b < B; ++b) {
    scales[b] = load(g.scales + (first_block + b) * kLanes);
    offsets[b] = kInt4 ? load(g.offsets + (first_block + b) * kLanes) : zero();
  }
  for (int r = 0; r < R; ++r) {
    float input_scale;
    int32_t input_sum;
    memcpy(&input_scale, x[r] + scale_at, 4);
    memcpy(&input_sum, x[r] + sum_at, 4);
    for (int b = 0; b < B; ++b) {
      const int32_t* sum = dots[0] + (r * B + b) * kLanes;
      const I exact =
          kPlanes == 2 ? add(times_256(load(sum)), load(sum + R * B * kLanes)) : load(sum);
      const V part = kInt4 ? int4_part(exact, scales[b], input_sum, offsets[b])
                           : int8_part(exact, scales[b], input_sum);
      float* to = c + r * kPanel + b * kLanes;
      store(to, fma(part, set1(input_scale), load(to)));
    }
  }
}

template <int R, bool kInt4, int kPlanes>
static inline void add_group_rows(int blocks, const uint8_t* const* x, const Operand& o,
                                  const Group& g, float* c) {
  int b = 0;
  for (; b + kTileBlocks <= blocks; b += kTileBlocks)
    add_group<R, kTileBlocks, kInt4, kPlanes>(x, o, g, b, c + b * kLanes);
  for (; b < blocks; ++b) add_group<R, 1, kInt4, kPlanes>(x, o, g, b, c + b * kLanes);
}

template <bool kInt4, int kPlanes>
static inline void add_group_all(int64_t rows, int blocks, const uint8_t* const* x,
                                 const Operand& o, const Group& g, float* c, NextWeights& next) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    add_group_rows<kTileRows, kInt4, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
    next.ask();
  }
#ifdef FULMEN_AVX512
  for (; r + 2 <= rows; r += 2)
    add_group_rows<2, kInt4, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
#endif
  for (; r < rows; ++r) add_group_rows<1, kInt4, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
}

#ifdef FULMEN_AMX

// c (one row, one block) += one group
static inline void finish_group(I dots, const uint8_t* x, const Operand& o, const Group& g,
                                int block, float* c) {
  const float* input_scales = (const float*)(x + o.planes * o.k);
  const int32_t input_sum = ((const int32_t*)(input_scales + o.groups))[g.index];
  const V scale = load(g.scales + block * kLanes);
  const V part = g.offsets == nullptr
                     ? int8_part(dots, scale, input_sum)
                     : int4_part(dots, scale, input_sum, load(g.offsets + block * kLanes));
  store(c, fma(part, set1(input_scales[g.index]), load(c)));
}

// c += one group of 64 or 128 inputs; the integers are exact, so the bits are those of add_group
static inline void tile_group(const uint8_t* const* x, int64_t rows, int blocks, const Operand& o,
                              const Group& g, float* c) {
  alignas(64) uint8_t gathered[16 * kTileBytes];
  alignas(64) int32_t dots[2][16 * kLanes];
  int configured = 0;
  for (int64_t r = 0; r < rows; r += 16) {
    const int some = int(least(16, rows - r));
    if (some != configured) configure(some);
    configured = some;
    for (int b = 0; b < blocks; ++b) {
      for (int p = 0; p < o.planes; ++p) {
        const TileRows a = even_rows(x + r, some, p * o.k + g.offset, g.size, gathered);
        tile_zero<0>();
        for (int64_t i = 0; i < g.size / 64; ++i) {
          tile_load<4>(a.data + 64 * i, a.stride);
          tile_load<6>(g.codes + b * g.stride + 1024 * i, 64);
          tile_dot_int8<0, 4, 6>();
        }
        tile_store<0>(dots[p], 64);
      }
      for (int i = 0; i < some; ++i) {
        I sum = load(dots[0] + i * kLanes);
        if (o.planes == 2) sum = add(times_256(sum), load(dots[1] + i * kLanes));
        finish_group(sum, x[r + i], o, g, b, c + (r + i) * kPanel + b * kLanes);
      }
    }
  }
  release_tiles();
}

#endif

// Few rows read weights straight into registers: all groups of B blocks, the same operations on the
// same integers and floats as below, in the same order.
template <int R, int B, bool kInt4, int kPlanes>
static inline void integer_stream(const uint8_t* const* x, const Operand& o, const Matrix& w,
                                  const uint8_t* data, int64_t stride, float* c,
                                  const uint8_t* then) {
  const int group = w.group;
  const int64_t group_bytes = group * (kInt4 ? 8 : 16) + 64;
  const Ahead ahead(data, then, o.groups, group_bytes);
  V sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = zero();
  for (int64_t g = 0; g < o.groups; ++g) {
    const uint8_t *from = data + g * group_bytes, *asked = ahead.at(g);
    I dots[kPlanes][R][B];
    for (int p = 0; p < kPlanes; ++p)
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) dots[p][r][b] = izero();
    const uint8_t* a[R];
    for (int r = 0; r < R; ++r) a[r] = x[r] + g * group;
    for (int i = 0; i < group; i += kInt4 ? 8 : 4) {
      for (int b = 0; b < B; ++b) {
        const Quads codes = load_quads(from + b * stride + (kInt4 ? 8 * i : 16 * i));
        prefetch(asked + b * stride + (kInt4 ? 8 * i : 16 * i));
        const Quads first = kInt4 ? low_nibbles(codes) : codes;
        for (int p = 0; p < kPlanes; ++p)
          for (int r = 0; r < R; ++r)
            dots[p][r][b] = dot(dots[p][r][b], first, set1_quad(a[r] + p * o.k + i));
        if (!kInt4) continue;
        const Quads second = high_nibbles(codes);
        for (int p = 0; p < kPlanes; ++p)
          for (int r = 0; r < R; ++r)
            dots[p][r][b] = dot(dots[p][r][b], second, set1_quad(a[r] + p * o.k + i + 4));
      }
    }
    for (int b = 0; b < B; ++b) prefetch(asked + b * stride + group_bytes - 64);
    for (int r = 0; r < R; ++r) {
      const float* input_scales = (const float*)(x[r] + o.planes * o.k);
      const int32_t input_sum = ((const int32_t*)(input_scales + o.groups))[g];
      for (int b = 0; b < B; ++b) {
        const uint8_t* tail = from + b * stride + group * (kInt4 ? 8 : 16);
        const I exact =
            kPlanes == 2 ? add(times_256(dots[0][r][b]), dots[kPlanes - 1][r][b]) : dots[0][r][b];
        const V part = kInt4 ? int4_part(exact, load_half((const uint16_t*)tail), input_sum,
                                         load_half((const uint16_t*)tail + kLanes))
                             : int8_part(exact, load((const float*)tail), input_sum);
        sums[r][b] = fma(part, set1(input_scales[g]), sums[r][b]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) store(c + r * kPanel + b * kLanes, sums[r][b]);
}

template <int R, int B>
static inline void integer_stream(const uint8_t* const* x, const Operand& o, const Matrix& w,
                                  const uint8_t* data, int64_t stride, float* c,
                                  const uint8_t* then) {
  const bool is_int4 = w.format == fulmen::kINT4, two = o.planes == 2;
  if (is_int4)
    two ? integer_stream<R, B, true, 2>(x, o, w, data, stride, c, then)
        : integer_stream<R, B, true, 1>(x, o, w, data, stride, c, then);
  else
    two ? integer_stream<R, B, false, 2>(x, o, w, data, stride, c, then)
        : integer_stream<R, B, false, 1>(x, o, w, data, stride, c, then);
}

struct IntegerStream {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, const Operand& o, const Matrix& w,
                         const uint8_t* data, int64_t stride, float* c, const uint8_t* then) {
    integer_stream<R, B>(x, o, w, data, stride, c, then);
  }
};

// A group of int4 codes as bytes in the int8 layout, its scales and offsets as float32.
static inline void spread_int4(const uint8_t* from, int64_t stride, int blocks, int group,
                               PanelScratch& s, Group& g) {
  for (int b = 0; b < blocks; ++b) {
    const uint8_t* block = from + b * stride;
    uint8_t* codes = s.codes + b * 16 * group;
    for (int i = 0; i < group / 8; ++i) {
      const Quads both = load_quads(block + i * 64);
      store(codes + i * 128, low_nibbles(both));
      store(codes + i * 128 + 64, high_nibbles(both));
    }
    const uint16_t* halves = (const uint16_t*)(block + group * 8);
    store(s.scales + b * kLanes, load_half(halves));
    store(s.offsets + b * kLanes, load_half(halves + kLanes));
  }
  g.codes = s.codes;
  g.stride = 16 * group;
  g.offsets = s.offsets;
}

// Rows whose sums stay in the first-level cache while the groups pass.
constexpr int64_t kIntegerRows = 96;

static inline void integer_panel(const uint8_t* const* x, int64_t rows, const Operand& o,
                                 const Matrix& w, const uint8_t* data, int64_t stride, int blocks,
                                 float* c, PanelScratch& s, const uint8_t* then) {
  if (rows <= kStreamRows)
    return stream_panel<IntegerStream>(x, rows, o, w, data, stride, blocks, c, then);
  const bool is_int4 = w.format == fulmen::kINT4, two = o.planes == 2;
  const int64_t group_bytes = w.group * (is_int4 ? 8 : 16) + 64;
  for (int64_t r = 0; r < rows; r += kIntegerRows) {
    const int64_t some = least(kIntegerRows, rows - r);
    for (int64_t i = 0; i < o.groups; ++i) {
      const uint8_t* from = data + i * group_bytes;
      Group g{i, i * w.group, w.group, from, stride, s.scales, nullptr};
      if (is_int4)
        spread_int4(from, stride, blocks, w.group, s, g);
      else
        for (int b = 0; b < blocks; ++b)
          store(s.scales + b * kLanes, load((const float*)(from + b * stride + w.group * 16)));
#ifdef FULMEN_AMX
      if (some >= 16 && w.group % 64 == 0) {
        tile_group(x + r, some, blocks, o, g, c + r * kPanel);
        continue;
      }
#endif
      NextWeights next(i + 1 < o.groups ? from + group_bytes : nullptr, stride, group_bytes, blocks,
                       some);
      float* to = c + r * kPanel;
      if (is_int4)
        two ? add_group_all<true, 2>(some, blocks, x + r, o, g, to, next)
            : add_group_all<true, 1>(some, blocks, x + r, o, g, to, next);
      else
        two ? add_group_all<false, 2>(some, blocks, x + r, o, g, to, next)
            : add_group_all<false, 1>(some, blocks, x + r, o, g, to, next);
    }
  }
}

}  // namespace ISA
