// Products of int8 and 4-bit weights: exact within a group of inputs, then one float32 sum over
// groups in their order. So every instruction set, and every number of rows, gives the same bits.
#pragma once

#include "operand.h"
#include "registers.h"
#ifdef FULMEN_AMX
#include "tiles.h"
#endif

namespace ISA {

// What the codes of codebook4 stand for, and its zero points, 29 + 2 j: LEVELS and ZEROS of
// fulmen/kernels/weights.py. None is above 63: see Inputs.
alignas(16) static constexpr uint8_t kLevels[16] = {0,  7,  12, 17, 21, 24, 27, 30,
                                                    33, 36, 39, 42, 45, 49, 53, 59};
static_assert(kLevels[15] < 64);
constexpr float kFirstZero = 29, kZeroStep = 2;

struct Group {
  int64_t index, offset;  // of the group, and of its first input
  int size;
  const uint8_t* codes;  // int8 layout, block b at codes + b * stride
  int64_t stride;
  const float* scales;   // [blocks][16]
  const float* offsets;  // [blocks][16]: offsets of int4, zero points of codebook4
};

// Sum of a group before the scale of the inputs, from its exact integer sums. An offset is that of
// int4, or the zero point of codebook4.
template <Format F>
static inline V scaled(I dots, V scale, int32_t input_sum, V offset) {
  if (F == fulmen::kINT8) return mul(to_float(sub(dots, set1(128 * input_sum))), scale);
  if (F == fulmen::kINT4) return fma(to_float(dots), scale, mul(set1(float(input_sum)), offset));
  return mul(fma(set1(-float(input_sum)), offset, to_float(dots)), scale);
}

static inline V scale_of(I both) { return to_float(over_4(both)); }
static inline V zero_of(I both) {
  return fma(to_float(modulo_4(both)), set1(kZeroStep), set1(kFirstZero));
}

// Where the groups of a block lie.
template <Format F>
struct Place {
  int64_t codes;  // bytes of a group's codes
  explicit Place(int group) : codes(group * (F == fulmen::kINT8 ? 16 : 8)) {}
  int64_t of(int64_t g) const {
    return F == fulmen::kCODEBOOK4 ? g / kRun * (kRun * codes + 64) + 64 + g % kRun * codes
                                   : g * (codes + 64);
  }
  int64_t of_scales(int64_t g) const {
    return F == fulmen::kCODEBOOK4 ? g / kRun * (kRun * codes + 64) + g % kRun * kLanes
                                   : of(g) + codes;
  }
  V scale(const uint8_t* block, int64_t g) const {
    const uint8_t* from = block + of_scales(g);
    if (F == fulmen::kINT8) return load((const float*)from);
    return F == fulmen::kINT4 ? load_half((const uint16_t*)from) : scale_of(load_bytes(from));
  }
  V offset(const uint8_t* block, int64_t g) const {
    const uint8_t* from = block + of_scales(g);
    if (F == fulmen::kINT8) return zero();
    return F == fulmen::kINT4 ? load_half((const uint16_t*)from + kLanes)
                              : zero_of(load_bytes(from));
  }
};

// How codes, as bytes, meet inputs. Without an instruction that adds the products of four bytes,
// codes below 64 go in pairs: each sum of 16 bits takes four products, at most
// 4 * 63 * 128 = 32,256.
enum class Inputs { kBytes, kPairs, kWords };

#ifdef FULMEN_VNNI
constexpr Inputs kSmallCodes = Inputs::kBytes;
#else
constexpr Inputs kSmallCodes = Inputs::kPairs;
#endif

template <Format F, int kPlanes>
static constexpr Inputs inputs_of() {
  return kPlanes == 2 && kWords ? Inputs::kWords
         : F == fulmen::kINT8   ? Inputs::kBytes
                                : kSmallCodes;
}
// Sums kept apart: two planes of bytes have one each.
template <int kPlanes>
static constexpr int kSums = kPlanes == 2 && !kWords ? 2 : 1;

// sum + u x over each quad; words have their second half k bytes on
template <Inputs kInputs>
static inline I dot_inputs(I sum, Quads u, const uint8_t* x, int64_t k) {
  if (kInputs == Inputs::kWords) return dot_words(sum, u, set1_quad(x), set1_quad(x + k));
  return dot(sum, u, set1_quad(x));
}
// sum + u x + v y, where y are the four inputs after x
template <Inputs kInputs>
static inline I dot_inputs(I sum, Quads u, Quads v, const uint8_t* x, int64_t k) {
  if (kInputs == Inputs::kPairs) return dot_pairs(sum, u, set1_quad(x), v, set1_quad(x + 4));
  return dot_inputs<kInputs>(dot_inputs<kInputs>(sum, u, x, k), v, x + 4, k);
}

// dots (R, B) = one group of codes times one plane of activations, or words. A function of its own,
// unrolled by order and without other arithmetic: else the compiler keeps the sums in memory.
template <int R, int B, Inputs kInputs>
static __attribute__((noinline)) void integer_dots(const uint8_t* const* x, int64_t offset,
                                                   int64_t k, const uint8_t* codes, int64_t stride,
                                                   int size, int32_t* dots) {
  I sums[R][B];
  const uint8_t* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = x[r] + offset;
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sums[r][b] = izero();
  }
  constexpr int kStep = kInputs == Inputs::kPairs ? 8 : 4;
  for (int64_t i = 0; i < size; i += kStep) {
    Quads u[B], v[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      u[b] = load_quads(codes + b * stride + i * 16);
      if (kStep == 8) v[b] = load_quads(codes + b * stride + i * 16 + 64);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
        sums[r][b] = kStep == 8 ? dot_inputs<kInputs>(sums[r][b], u[b], v[b], a[r] + i, k)
                                : dot_inputs<kInputs>(sums[r][b], u[b], a[r] + i, k);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) store(dots + (r * B + b) * kLanes, sums[r][b]);
}

// c (R rows, B blocks) += one group
template <int R, int B, Format F, int kPlanes>
static inline void add_group(const uint8_t* const* x, const Operand& o, const Group& g,
                             int first_block, float* c) {
  alignas(64) int32_t dots[kSums<kPlanes>][R * B * kLanes];
  const uint8_t* codes = g.codes + first_block * g.stride;
  for (int p = 0; p < kSums<kPlanes>; ++p)
    integer_dots<R, B, inputs_of<F, kPlanes>()>(x, p * o.k + g.offset, o.k, codes, g.stride, g.size,
                                                dots[p]);
  const int64_t scale_at = kPlanes * o.k + 4 * g.index, sum_at = scale_at + 4 * o.groups;
  V scales[B], offsets[B];
  for (int b = 0; b < B; ++b) {
    scales[b] = load(g.scales + (first_block + b) * kLanes);
    offsets[b] = F == fulmen::kINT8 ? zero() : load(g.offsets + (first_block + b) * kLanes);
  }
  for (int r = 0; r < R; ++r) {
    float input_scale;
    int32_t input_sum;
    memcpy(&input_scale, x[r] + scale_at, 4);
    memcpy(&input_sum, x[r] + sum_at, 4);
    for (int b = 0; b < B; ++b) {
      const int32_t* sum = dots[0] + (r * B + b) * kLanes;
      const I exact =
          kSums<kPlanes> == 2 ? add(times_256(load(sum)), load(sum + R * B * kLanes)) : load(sum);
      const V part = scaled<F>(exact, scales[b], input_sum, offsets[b]);
      float* to = c + r * kPanel + b * kLanes;
      store(to, fma(part, set1(input_scale), load(to)));
    }
  }
}

template <int R, Format F, int kPlanes>
static inline void add_group_rows(int blocks, const uint8_t* const* x, const Operand& o,
                                  const Group& g, float* c) {
  int b = 0;
  for (; b + kTileBlocks <= blocks; b += kTileBlocks)
    add_group<R, kTileBlocks, F, kPlanes>(x, o, g, b, c + b * kLanes);
  for (; b < blocks; ++b) add_group<R, 1, F, kPlanes>(x, o, g, b, c + b * kLanes);
}

template <Format F, int kPlanes>
static inline void add_group_all(int64_t rows, int blocks, const uint8_t* const* x,
                                 const Operand& o, const Group& g, float* c, NextWeights& next) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    add_group_rows<kTileRows, F, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
    next.ask();
  }
#ifdef FULMEN_AVX512
  for (; r + 2 <= rows; r += 2) add_group_rows<2, F, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
#endif
  for (; r < rows; ++r) add_group_rows<1, F, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
}

#ifdef FULMEN_AMX

// c (one row, one block) += one group
template <Format F>
static inline void finish_group(I dots, const uint8_t* x, const Operand& o, const Group& g,
                                int block, float* c) {
  const float* input_scales = (const float*)(x + o.planes * o.k);
  const int32_t input_sum = ((const int32_t*)(input_scales + o.groups))[g.index];
  const V offset = F == fulmen::kINT8 ? zero() : load(g.offsets + block * kLanes);
  const V part = scaled<F>(dots, load(g.scales + block * kLanes), input_sum, offset);
  store(c, fma(part, set1(input_scales[g.index]), load(c)));
}

// c += one group, in tiles of 64 inputs or of 32; the integers are exact, so the bits are those of
// add_group
template <Format F>
static inline void tile_group(const uint8_t* const* x, int64_t rows, int blocks, const Operand& o,
                              const Group& g, float* c) {
  alignas(64) uint8_t gathered[16 * kTileBytes];
  alignas(64) int32_t dots[2][16 * kLanes];
  const int wide = g.size % 64 == 0 ? 64 : 32;
  int configured = 0;
  for (int64_t r = 0; r < rows; r += 16) {
    const int some = int(least(16, rows - r));
    if (some != configured) configure(some, wide);
    configured = some;
    for (int b = 0; b < blocks; ++b) {
      for (int p = 0; p < o.planes; ++p) {
        const TileRows a = even_rows(x + r, some, p * o.k + g.offset, g.size, gathered);
        tile_zero<0>();
        for (int64_t i = 0; i < g.size; i += wide) {
          tile_load<4>(a.data + i, a.stride);
          tile_load<6>(g.codes + b * g.stride + 16 * i, 64);
          tile_dot_int8<0, 4, 6>();
        }
        tile_store<0>(dots[p], 64);
      }
      for (int i = 0; i < some; ++i) {
        I sum = load(dots[0] + i * kLanes);
        if (o.planes == 2) sum = add(times_256(sum), load(dots[1] + i * kLanes));
        finish_group<F>(sum, x[r + i], o, g, b, c + (r + i) * kPanel + b * kLanes);
      }
    }
  }
  release_tiles();
}

#endif

// Few rows read weights straight into registers: all groups of B blocks, the same operations on the
// same integers and floats as above, in the same order. In one piece: gcc keeps the sums of parts
// of it in memory.
template <int R, int B, Format F, int kPlanes>
static inline void integer_stream(const uint8_t* const* x, const Operand& o, const Matrix& w,
                                  const uint8_t* data, int64_t stride, float* c,
                                  const uint8_t* then) {
  constexpr bool kNibbles = F != fulmen::kINT8, kCodebook = F == fulmen::kCODEBOOK4;
  constexpr Inputs kInputs = inputs_of<F, kPlanes>();
  const int group = w.group;
  const Place<F> place(group);
  const Ahead ahead(data, then, o.groups, place.codes);
  V sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = zero();
  if (kCodebook)
    for (int b = 0; b < B; ++b) prefetch(data + (b + 1) * stride - 64);
  for (int64_t g = 0; g < o.groups; ++g) {
    const int64_t next = ahead.group(g);
    const uint8_t *from = data + place.of(g), *asked = ahead.block(g) + place.of(next);
    if (kCodebook && next % kRun == 0)
      for (int b = 0; b < B; ++b) prefetch(asked + b * stride - 64);
    I dots[kSums<kPlanes>][R][B];
    for (int p = 0; p < kSums<kPlanes>; ++p)
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) dots[p][r][b] = izero();
    const uint8_t* a[R];
    for (int r = 0; r < R; ++r) a[r] = x[r] + g * group;
    for (int i = 0; i < group; i += 8) {
      for (int b = 0; b < B; ++b) {
        const int64_t line = b * stride + (kNibbles ? 8 : 16) * i;
        const Quads codes = load_quads(from + line);
        prefetch(asked + line);
        Quads u = codes, v;
        if (kNibbles) {
          u = low_nibbles(codes), v = high_nibbles(codes);
          if (kCodebook) u = lookup(kLevels, u), v = lookup(kLevels, v);
        } else {
          v = load_quads(from + line + 64);
          prefetch(asked + line + 64);
        }
        for (int p = 0; p < kSums<kPlanes>; ++p)
          for (int r = 0; r < R; ++r)
            dots[p][r][b] = dot_inputs<kInputs>(dots[p][r][b], u, v, a[r] + p * o.k + i, o.k);
      }
    }
    if (!kCodebook)
      for (int b = 0; b < B; ++b) prefetch(asked + b * stride + place.codes);
    for (int b = 0; b < B; ++b) {
      const uint8_t* block = data + b * stride;
      const V scale = place.scale(block, g), offset = place.offset(block, g);
      for (int r = 0; r < R; ++r) {
        const float* input_scales = (const float*)(x[r] + o.planes * o.k);
        const int32_t input_sum = ((const int32_t*)(input_scales + o.groups))[g];
        const I exact = kSums<kPlanes> == 2
                            ? add(times_256(dots[0][r][b]), dots[kSums<kPlanes> - 1][r][b])
                            : dots[0][r][b];
        const V part = scaled<F>(exact, scale, input_sum, offset);
        sums[r][b] = fma(part, set1(input_scales[g]), sums[r][b]);
      }
    }
  }
  for (int b = 0; b < B; ++b) {
    const V column = kCodebook ? load((const float*)(data + (b + 1) * stride - 64)) : zero();
    for (int r = 0; r < R; ++r)
      store(c + r * kPanel + b * kLanes, kCodebook ? mul(sums[r][b], column) : sums[r][b]);
  }
}

template <Format F, int kPlanes>
struct IntegerStream {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, const Operand& o, const Matrix& w,
                         const uint8_t* data, int64_t stride, float* c, const uint8_t* then) {
    integer_stream<R, B, F, kPlanes>(x, o, w, data, stride, c, then);
  }
};

// A group of 4-bit codes as bytes in the int8 layout, its scales and offsets as float32.
template <Format F>
static inline void spread_group(const uint8_t* data, int64_t stride, int blocks, PanelScratch& s,
                                Group& g) {
  const Place<F> place(g.size);
  for (int b = 0; b < blocks; ++b) {
    const uint8_t* block = data + b * stride;
    store(s.scales + b * kLanes, place.scale(block, g.index));
    if (F == fulmen::kINT8) continue;
    store(s.offsets + b * kLanes, place.offset(block, g.index));
    uint8_t* codes = s.codes + b * 16 * g.size;
    for (int i = 0; i < g.size / 8; ++i) {
      const Quads both = load_quads(block + place.of(g.index) + i * 64);
      Quads low = low_nibbles(both), high = high_nibbles(both);
      if (F == fulmen::kCODEBOOK4) low = lookup(kLevels, low), high = lookup(kLevels, high);
      store(codes + i * 128, low);
      store(codes + i * 128 + 64, high);
    }
  }
  const bool in_place = F == fulmen::kINT8;
  g.codes = in_place ? data + place.of(g.index) : s.codes;
  g.stride = in_place ? stride : 16 * g.size;
}

// Rows whose sums stay in the first-level cache while the groups pass.
constexpr int64_t kIntegerRows = 96;

template <Format F, int kPlanes>
static inline void integer_panel(const uint8_t* const* x, int64_t rows, const Operand& o,
                                 const Matrix& w, const uint8_t* data, int64_t stride, int blocks,
                                 float* c, PanelScratch& s, const uint8_t* then) {
  if (rows <= kStreamRows)
    return stream_panel<IntegerStream<F, kPlanes>>(x, rows, o, w, data, stride, blocks, c, then);
  const Place<F> place(w.group);
  for (int64_t r = 0; r < rows; r += kIntegerRows) {
    const int64_t some = least(kIntegerRows, rows - r);
    for (int64_t i = 0; i < o.groups; ++i) {
      Group g{i, i * w.group, w.group, nullptr, 0, s.scales, s.offsets};
      spread_group<F>(data, stride, blocks, s, g);
#ifdef FULMEN_AMX
      if (some >= 16) {
        tile_group<F>(x + r, some, blocks, o, g, c + r * kPanel);
        continue;
      }
#endif
      NextWeights next(i + 1 < o.groups ? data + place.of(i + 1) : nullptr, stride,
                       place.codes + 64, blocks, some);
      add_group_all<F, kPlanes>(some, blocks, x + r, o, g, c + r * kPanel, next);
    }
  }
  if (F != fulmen::kCODEBOOK4) return;
  for (int b = 0; b < blocks; ++b) {
    const V column = load((const float*)(data + (b + 1) * stride - 64));
    for (int64_t r = 0; r < rows; ++r) {
      float* sums = c + r * kPanel + b * kLanes;
      store(sums, mul(load(sums), column));
    }
  }
}

template <Format F>
static inline void integer_panel(const uint8_t* const* x, int64_t rows, const Operand& o,
                                 const Matrix& w, const uint8_t* data, int64_t stride, int blocks,
                                 float* c, PanelScratch& s, const uint8_t* then) {
  o.planes == 2 ? integer_panel<F, 2>(x, rows, o, w, data, stride, blocks, c, s, then)
                : integer_panel<F, 1>(x, rows, o, w, data, stride, blocks, c, s, then);
}

static inline void integer_panel(const uint8_t* const* x, int64_t rows, const Operand& o,
                                 const Matrix& w, const uint8_t* data, int64_t stride, int blocks,
                                 float* c, PanelScratch& s, const uint8_t* then) {
  switch (w.format) {
    case fulmen::kINT8:
      return integer_panel<fulmen::kINT8>(x, rows, o, w, data, stride, blocks, c, s, then);
    case fulmen::kINT4:
      return integer_panel<fulmen::kINT4>(x, rows, o, w, data, stride, blocks, c, s, then);
    default:
      return integer_panel<fulmen::kCODEBOOK4>(x, rows, o, w, data, stride, blocks, c, s, then);
  }
}

}  // namespace ISA
