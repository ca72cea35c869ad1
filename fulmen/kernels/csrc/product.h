// The one product behind linear and experts: rows of activations times a panel of columns.
//
// A panel is up to four blocks of 16 packed columns. K is walked in blocks whose weights fit the
// first-level cache; the float32 sums wait in c between blocks. Every output value is one chain of
// operations in the order of K, whatever the number of rows or columns beside it, so one row and a
// thousand give the same bits. Integer products are exact, so for them only the order of the groups
// matters.
#pragma once

#ifdef FULMEN_AMX
#include "tiles.h"
#endif

namespace ISA {

using fulmen::Dtype;
using fulmen::Format;
using fulmen::Matrix;

constexpr int kPanelBlocks = 4;
constexpr int kPanel = kPanelBlocks * kLanes;  // columns
#ifdef FULMEN_AVX512
constexpr int kTileRows = 6, kTileBlocks = 4;
#else
constexpr int kTileRows = 2, kTileBlocks = 2;
#endif
constexpr int kMaxGroup = 128;  // inputs that share a scale
constexpr int kSumRows = 192;  // rows whose sums of a panel stay in the second-level cache

static inline int64_t padded_k(const Matrix& w) {
  switch (w.format) {
    case fulmen::kF32: return w.k;
    case fulmen::kBF16: return round_up(w.k, 32);
    default: return round_up(w.k, w.group);
  }
}

static inline int64_t block_bytes(const Matrix& w) {
  const int64_t k = padded_k(w), groups = w.group ? k / w.group : 0;
  switch (w.format) {
    case fulmen::kF32: return k * 64;
    case fulmen::kBF16: return k * 32;
    case fulmen::kFP8: return k * 16 + groups * 64;
    case fulmen::kINT8: return k * 16 + groups * 64;
    case fulmen::kINT4: return k * 8 + groups * 64;
  }
  return 0;
}

static inline int64_t num_blocks(const Matrix& w) { return (w.n + kLanes - 1) / kLanes; }
static inline bool is_integer(const Matrix& w) { return w.format == fulmen::kINT8 || w.format == fulmen::kINT4; }

// How the rows of activations must be laid out for a matrix.
//   float32  [k]            for float32 weights, and for bf16 and fp8 weights in a float32 model
//   bf16     [k]            for bf16 and fp8 weights
//   integer  planes of [k] int8, then [groups] float32 scales and [groups] int32 sums, k padded to
//            groups; x is scale (256 high + low), or scale times the one plane
struct Operand {
  bool integer, wide;  // wide: float32
  int planes;
  int64_t k, groups;
  int64_t bytes;  // of a row, a multiple of 64
};

static inline Operand operand_for(const Matrix& w, Dtype x, int input_bits) {
  Operand o{};
  o.k = padded_k(w);
  o.integer = is_integer(w);
  if (o.integer) {
    o.planes = input_bits / 8;
    o.groups = o.k / w.group;
    o.bytes = round_up(o.planes * o.k + o.groups * 8, 64);
  } else {
    o.wide = w.format == fulmen::kF32 || x == fulmen::kFloat32;
    o.bytes = round_up(o.k * (o.wide ? 4 : 2), 64);
  }
  return o;
}

// Whether rows of x can be read where they are.
static inline bool is_ready(const Operand& o, Dtype x, int64_t k) {
  return !o.integer && o.wide == (x == fulmen::kFloat32) && o.k == k;
}

// One group of a row as integers: the largest value becomes 127, or 32512 = 127 * 256 in two planes,
// whose high one then stays below 128.
template <class T, int kPlanes>
static inline void quantise_group(const T* x, int64_t count, int group, int8_t* high, int8_t* low, float* scale, int32_t* sum_of) {
  constexpr float top = kPlanes == 2 ? 32512.0f : 127.0f;
  V values[kMaxGroup / kLanes];
  V most = zero(), poison = zero();  // a NaN or infinity has no code: it makes the scale NaN
  const int vectors = group / kLanes;
  for (int i = 0; i < vectors; ++i) {
    const int64_t rest = count - i * kLanes;
    values[i] = rest >= kLanes ? load(x + i * kLanes) : rest > 0 ? load_n(x + i * kLanes, int(rest)) : zero();
    most = max(abs(values[i]), most);
    poison = fma(values[i], zero(), poison);
  }
  // In any order: the maximum and the sum of integers below 2^24 are exact.
  const float range = quick_largest(most), inverse = range > 1e-34f ? top / range : 0.0f;  // less is 0: the quotient would overflow
  *scale = range / top + quick_sum(poison);
  V total = zero();
  for (int i = 0; i < vectors; ++i) {
    V q = round(mul(values[i], set1(inverse)));
    q = max(min(q, set1(top)), set1(-top));
    total = add(total, q);
    if (kPlanes == 1) {
      store_bytes(high + i * kLanes, q);
      continue;
    }
    const V h = round(mul(q, set1(1.0f / 256.0f)));
    // q - 256 h is between -128 and 128; ties to even make 128 possible, where -128 and h + 1 say the same
    const V l = sub(q, mul(h, set1(256.0f)));
    const V over = where_less(set1(127.5f), l, set1(1.0f), zero());
    store_bytes(low + i * kLanes, sub(l, mul(over, set1(256.0f))));
    store_bytes(high + i * kLanes, add(h, over));
  }
  *sum_of = int32_t(quick_sum(total));
}

template <class T>
static inline void quantise(const T* x, int64_t k, const Operand& o, int group, uint8_t* out) {
  int8_t* high = (int8_t*)out;
  int8_t* low = high + o.k;  // with one plane: unused
  float* scales = (float*)(out + o.planes * o.k);
  int32_t* sums = (int32_t*)(scales + o.groups);
  for (int64_t g = 0; g < o.groups; ++g) {
    const int64_t from = g * group;
    if (o.planes == 2) quantise_group<T, 2>(x + from, k - from, group, high + from, low + from, scales + g, sums + g);
    else quantise_group<T, 1>(x + from, k - from, group, high + from, nullptr, scales + g, sums + g);
  }
}

// One row in the operand's layout.
template <class T>
static inline void prepare_row(const T* x, int64_t k, const Operand& o, int group, uint8_t* out) {
  if (o.integer) return quantise(x, k, o, group, out);
  const int size = o.wide ? 4 : 2;
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    if (o.wide) store((float*)out + i, load(x + i));
    else store((uint16_t*)out + i, load(x + i));
  }
  if (i < k) {
    const int n = int(k - i);
    if (o.wide) store_n((float*)out + i, load_n(x + i, n), n);
    else store_n((uint16_t*)out + i, load_n(x + i, n), n);
  }
  if (o.k > k) memset(out + k * size, 0, size_t((o.k - k) * size));
}

// ---- tiles of sums in registers: R rows by B blocks, continued from c --------------------------

template <int R, int B>
struct Sums {
  V v[R][B];
  void load_from(const float* c) {
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) v[r][b] = load(c + r * kPanel + b * kLanes);
  }
  void store_to(float* c) const {
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) store(c + r * kPanel + b * kLanes, v[r][b]);
  }
};

// w: block b starts at w + b * stride; x: this K block of each row
struct TileF32 {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride, int64_t k, float* c) {
    Sums<R, B> s;
    s.load_from(c);
    const float* a[R];
    for (int r = 0; r < R; ++r) a[r] = (const float*)x[r] + offset;
    for (int64_t i = 0; i < k; ++i) {
      V b[B];
      for (int j = 0; j < B; ++j) b[j] = load((const float*)(w + j * stride) + i * kLanes);
      for (int r = 0; r < R; ++r) {
        V value = set1(a[r][i]);
        for (int j = 0; j < B; ++j) s.v[r][j] = fma(value, b[j], s.v[r][j]);
      }
    }
    s.store_to(c);
  }
};

struct TileBF16 {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride, int64_t k, float* c) {
    Sums<R, B> s;
    s.load_from(c);
    const uint8_t* a[R];
    for (int r = 0; r < R; ++r) a[r] = x[r] + 2 * offset;
    for (int64_t i = 0; i < k / 2; ++i) {
      Pairs b[B];
      for (int j = 0; j < B; ++j) b[j] = load_pairs(w + j * stride + i * 64);
      for (int r = 0; r < R; ++r) {
        Pairs value = set1_pair(a[r] + 4 * i);
        for (int j = 0; j < B; ++j) s.v[r][j] = dot(s.v[r][j], value, b[j]);
      }
    }
    s.store_to(c);
  }
};

// bf16 weights, float32 activations
struct TileWide {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride, int64_t k, float* c) {
    Sums<R, B> s;
    s.load_from(c);
    const float* a[R];
    for (int r = 0; r < R; ++r) a[r] = (const float*)x[r] + offset;
    for (int64_t i = 0; i < k / 2; ++i) {
      for (int j = 0; j < B; ++j) {
        Pairs b = load_pairs(w + j * stride + i * 64);
        V e = even(b), o = odd(b);
        for (int r = 0; r < R; ++r)
          s.v[r][j] = fma(set1(a[r][2 * i + 1]), o, fma(set1(a[r][2 * i]), e, s.v[r][j]));
      }
    }
    s.store_to(c);
  }
};

template <class T>
static inline void tile_rows(int rows, int blocks, const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride,
                             int64_t k, float* c) {
  for (int b = 0; b < blocks;) {
    const int wide = blocks - b >= kTileBlocks ? kTileBlocks : 1;
    const uint8_t* from = w + b * stride;
    float* to = c + b * kLanes;
    if (wide == 1) {
      switch (rows) {
        case 1: T::template run<1, 1>(x, offset, from, stride, k, to); break;
        case 2: T::template run<2, 1>(x, offset, from, stride, k, to); break;
#ifdef FULMEN_AVX512
        case 3: T::template run<3, 1>(x, offset, from, stride, k, to); break;
        case 4: T::template run<4, 1>(x, offset, from, stride, k, to); break;
        case 5: T::template run<5, 1>(x, offset, from, stride, k, to); break;
        case 6: T::template run<6, 1>(x, offset, from, stride, k, to); break;
#endif
      }
    } else {
      switch (rows) {
        case 1: T::template run<1, kTileBlocks>(x, offset, from, stride, k, to); break;
        case 2: T::template run<2, kTileBlocks>(x, offset, from, stride, k, to); break;
#ifdef FULMEN_AVX512
        case 3: T::template run<3, kTileBlocks>(x, offset, from, stride, k, to); break;
        case 4: T::template run<4, kTileBlocks>(x, offset, from, stride, k, to); break;
        case 5: T::template run<5, kTileBlocks>(x, offset, from, stride, k, to); break;
        case 6: T::template run<6, kTileBlocks>(x, offset, from, stride, k, to); break;
#endif
      }
    }
    b += wide;
  }
}

// The weights of the next step, asked for some lines at a time while this step multiplies: the first
// rows to meet them would wait for memory, which all others then leave idle.
struct NextWeights {
  const uint8_t* from;  // null: nothing
  int64_t stride, bytes;  // from block to block, and of each
  int blocks;
  int64_t share;  // lines to ask for at a time
  int64_t at = 0;

  NextWeights(const uint8_t* from, int64_t stride, int64_t bytes, int blocks, int64_t rows)
      : from(rows > kMinRows ? from : nullptr), stride(stride), bytes(bytes), blocks(blocks),
        share((blocks * bytes / 64 * kTileRows + rows - 1) / rows + 1) {}

  void ask() {
    if (from == nullptr) return;
    for (int64_t i = 0; i < share; ++i) {
      _mm_prefetch((const char*)(from + at), _MM_HINT_T1);
      at += 64;
      if (at < bytes) continue;
      at = 0;
      from += stride;
      if (--blocks == 0) {
        from = nullptr;
        return;
      }
    }
  }

  static constexpr int64_t kMinRows = 24;  // fewer do little but read, which needs no help
};

template <class T>
static inline void tile_all(int64_t rows, int blocks, const uint8_t* const* x, int64_t offset, const uint8_t* w,
                            int64_t stride, int64_t k, float* c, NextWeights& next) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    tile_rows<T>(int(least(kTileRows, rows - r)), blocks, x + r, offset, w, stride, k, c + r * kPanel);
    next.ask();
  }
}

// ---- integer weights ----------------------------------------------------------------------------

struct Group {
  int64_t index, offset;  // which group, and its first input
  int size;
  const uint8_t* codes;  // int8 layout, block b at codes + b * stride
  int64_t stride;
  const float* scales;   // [blocks][16]
  const float* offsets;  // [blocks][16], null for int8
};

// What a group adds before the scale of the inputs, given its exact integer sums.
static inline V int8_part(I dots, V scale, int32_t input_sum) { return mul(to_float(sub(dots, set1(128 * input_sum))), scale); }
static inline V int4_part(I dots, V scale, int32_t input_sum, V offset) {
  return fma(to_float(dots), scale, mul(set1(float(input_sum)), offset));
}

// dots (R, B) = one group of codes times one plane of activations. A function of its own, unrolled by
// order and without other arithmetic: else the compiler keeps the sums in memory.
template <int R, int B>
static __attribute__((noinline)) void integer_dots(const uint8_t* const* x, int64_t offset, const uint8_t* codes, int64_t stride, int size,
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

// c (R rows, B blocks) += what one group adds
template <int R, int B, bool kInt4, int kPlanes>
static inline void add_group(const uint8_t* const* x, const Operand& o, const Group& g, int first_block, float* c) {
  alignas(64) int32_t dots[kPlanes][R * B * kLanes];
  const uint8_t* codes = g.codes + first_block * g.stride;
  for (int p = 0; p < kPlanes; ++p) integer_dots<R, B>(x, p * o.k + g.offset, codes, g.stride, g.size, dots[p]);
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
      const I exact = kPlanes == 2 ? add(times_256(load(sum)), load(sum + R * B * kLanes)) : load(sum);
      const V part = kInt4 ? int4_part(exact, scales[b], input_sum, offsets[b]) : int8_part(exact, scales[b], input_sum);
      float* to = c + r * kPanel + b * kLanes;
      store(to, fma(part, set1(input_scale), load(to)));
    }
  }
}

template <int R, bool kInt4, int kPlanes>
static inline void add_group_rows(int blocks, const uint8_t* const* x, const Operand& o, const Group& g, float* c) {
  int b = 0;
  for (; b + kTileBlocks <= blocks; b += kTileBlocks) add_group<R, kTileBlocks, kInt4, kPlanes>(x, o, g, b, c + b * kLanes);
  for (; b < blocks; ++b) add_group<R, 1, kInt4, kPlanes>(x, o, g, b, c + b * kLanes);
}

template <bool kInt4, int kPlanes>
static inline void add_group_all(int64_t rows, int blocks, const uint8_t* const* x, const Operand& o, const Group& g, float* c,
                                 NextWeights& next) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    add_group_rows<kTileRows, kInt4, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
    next.ask();
  }
#ifdef FULMEN_AVX512
  for (; r + 2 <= rows; r += 2) add_group_rows<2, kInt4, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
#endif
  for (; r < rows; ++r) add_group_rows<1, kInt4, kPlanes>(blocks, x + r, o, g, c + r * kPanel);
}

#ifdef FULMEN_AMX

// ---- tiles: sums 0 to 3, activations 4 and 5, weights 6 and 7 -----------------------------------

static inline void configure(int rows) {
  TileConfig config{};
  config.palette = 1;
  const int top = rows < 16 ? rows : 16, bottom = rows - top;
  const int of_tile[8] = {top, top, bottom, bottom, top, bottom, 16, 16};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = uint8_t(of_tile[t]);
    config.bytes[t] = of_tile[t] ? 64 : 0;
  }
  load_config(config);
}

// Activations as a tile can load them: evenly spaced rows, gathered where they are not.
struct TileRows {
  const uint8_t* data;
  int64_t stride;
};
constexpr int kTileBytes = 512;  // of a row in a K block: 256 bf16, or 128 codes

static inline TileRows even_rows(const uint8_t* const* x, int rows, int64_t from, int64_t bytes, uint8_t* gathered) {
  const int64_t stride = rows > 1 ? x[1] - x[0] : 0;
  bool even = true;
  for (int r = 2; r < rows; ++r) even = even && x[r] - x[r - 1] == stride;
  if (even) return {x[0] + from, stride};
  for (int r = 0; r < rows; ++r) memcpy(gathered + r * kTileBytes, x[r] + from, size_t(bytes));
  return {gathered, kTileBytes};
}

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
static inline void tile_bf16(const uint8_t* const* x, int64_t rows, int blocks, int64_t offset, const uint8_t* w, int64_t stride,
                             int64_t k, float* c, NextWeights& next) {
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
      if (some > 16) two ? tile_square<true, true>(a, weights, stride, k, to) : tile_square<true, false>(a, weights, stride, k, to);
      else two ? tile_square<false, true>(a, weights, stride, k, to) : tile_square<false, false>(a, weights, stride, k, to);
    }
    for (int i = 0; i < 32 / kTileRows; ++i) next.ask();
  }
  release_tiles();
}

// c (one row, one block) += what one group adds
static inline void finish_group(I dots, const uint8_t* x, const Operand& o, const Group& g, int block, float* c) {
  const float* input_scales = (const float*)(x + o.planes * o.k);
  const int32_t input_sum = ((const int32_t*)(input_scales + o.groups))[g.index];
  const V scale = load(g.scales + block * kLanes);
  const V part = g.offsets == nullptr ? int8_part(dots, scale, input_sum)
                                      : int4_part(dots, scale, input_sum, load(g.offsets + block * kLanes));
  store(c, fma(part, set1(input_scales[g.index]), load(c)));
}

// c += one group of 64 or 128 inputs; the integers are exact, so the bits are those of add_group
static inline void tile_group(const uint8_t* const* x, int64_t rows, int blocks, const Operand& o, const Group& g, float* c) {
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

// ---- a panel -----------------------------------------------------------------------------------

// What the first-level cache holds while a panel is multiplied.
struct alignas(64) PanelScratch {
  uint8_t codes[kPanel * kMaxGroup];      // int4 spread to bytes
  uint16_t bf16[kPanel * kMaxGroup];      // fp8 as bf16
  float scales[kPanel], offsets[kPanel];
  float block_sums[kTileRows * kPanel];
};

// Few rows read weights straight into registers: all groups of B blocks, the same operations on the
// same integers and floats as below, in the same order.
template <int R, int B, bool kInt4, int kPlanes>
static inline void integer_stream(const uint8_t* const* x, const Operand& o, const Matrix& w, const uint8_t* data, int64_t stride,
                                  float* c) {
  const int group = w.group;
  const int64_t group_bytes = group * (kInt4 ? 8 : 16) + 64;
  V sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = zero();
  for (int64_t g = 0; g < o.groups; ++g) {
    const uint8_t* from = data + g * group_bytes;
    I dots[kPlanes][R][B];
    for (int p = 0; p < kPlanes; ++p)
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) dots[p][r][b] = izero();
    const uint8_t* a[R];
    for (int r = 0; r < R; ++r) a[r] = x[r] + g * group;
    for (int i = 0; i < group; i += kInt4 ? 8 : 4) {
      for (int b = 0; b < B; ++b) {
        const Quads codes = load_quads(from + b * stride + (kInt4 ? 8 * i : 16 * i));
        prefetch(from + b * stride + (kInt4 ? 8 * i : 16 * i) + 2048);
        const Quads first = kInt4 ? low_nibbles(codes) : codes;
        for (int p = 0; p < kPlanes; ++p)
          for (int r = 0; r < R; ++r) dots[p][r][b] = dot(dots[p][r][b], first, set1_quad(a[r] + p * o.k + i));
        if (!kInt4) continue;
        const Quads second = high_nibbles(codes);
        for (int p = 0; p < kPlanes; ++p)
          for (int r = 0; r < R; ++r) dots[p][r][b] = dot(dots[p][r][b], second, set1_quad(a[r] + p * o.k + i + 4));
      }
    }
    for (int r = 0; r < R; ++r) {
      const float* input_scales = (const float*)(x[r] + o.planes * o.k);
      const int32_t input_sum = ((const int32_t*)(input_scales + o.groups))[g];
      for (int b = 0; b < B; ++b) {
        const uint8_t* tail = from + b * stride + group * (kInt4 ? 8 : 16);
        const I exact = kPlanes == 2 ? add(times_256(dots[0][r][b]), dots[kPlanes - 1][r][b]) : dots[0][r][b];
        const V part = kInt4 ? int4_part(exact, load_half((const uint16_t*)tail), input_sum, load_half((const uint16_t*)tail + kLanes))
                             : int8_part(exact, load((const float*)tail), input_sum);
        sums[r][b] = fma(part, set1(input_scales[g]), sums[r][b]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) store(c + r * kPanel + b * kLanes, sums[r][b]);
}

template <int R, int B>
static inline void integer_stream(const uint8_t* const* x, const Operand& o, const Matrix& w, const uint8_t* data, int64_t stride,
                                  float* c) {
  const bool is_int4 = w.format == fulmen::kINT4, two = o.planes == 2;
  if (is_int4) two ? integer_stream<R, B, true, 2>(x, o, w, data, stride, c) : integer_stream<R, B, true, 1>(x, o, w, data, stride, c);
  else two ? integer_stream<R, B, false, 2>(x, o, w, data, stride, c) : integer_stream<R, B, false, 1>(x, o, w, data, stride, c);
}

// Up to this many rows stream; each four pass over the panel, which the second time lies in a cache.
constexpr int kStreamRows = 12;

struct IntegerStream {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, const Operand& o, const Matrix& w, const uint8_t* data, int64_t stride, float* c) {
    integer_stream<R, B>(x, o, w, data, stride, c);
  }
};

template <class S>
static inline void stream_panel(const uint8_t* const* x, int64_t rows, const Operand& o, const Matrix& w, const uint8_t* data,
                                int64_t stride, int blocks, float* c) {
  constexpr int kNarrow = kTileBlocks / 2;  // blocks beside each other for three and four rows
  for (int64_t r = 0; r < rows; r += 4) {
    const int some = int(least(4, rows - r)), wide = some <= 2 ? kTileBlocks : kNarrow;
    for (int b = 0; b < blocks;) {
      const uint8_t* from = data + b * stride;
      float* to = c + r * kPanel + b * kLanes;
      const bool one = blocks - b < wide;
      switch (some) {
        case 1: one ? S::template run<1, 1>(x + r, o, w, from, stride, to) : S::template run<1, kTileBlocks>(x + r, o, w, from, stride, to); break;
        case 2: one ? S::template run<2, 1>(x + r, o, w, from, stride, to) : S::template run<2, kTileBlocks>(x + r, o, w, from, stride, to); break;
        case 3: one ? S::template run<3, 1>(x + r, o, w, from, stride, to) : S::template run<3, kNarrow>(x + r, o, w, from, stride, to); break;
        case 4: one ? S::template run<4, 1>(x + r, o, w, from, stride, to) : S::template run<4, kNarrow>(x + r, o, w, from, stride, to); break;
      }
      b += one ? 1 : wide;
    }
  }
}

// A group of int4 codes as bytes in the int8 layout, its scales and offsets as float32.
static inline void spread_int4(const uint8_t* from, int64_t stride, int blocks, int group, PanelScratch& s, Group& g) {
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

static inline void integer_panel(const uint8_t* const* x, int64_t rows, const Operand& o, const Matrix& w, const uint8_t* data,
                                 int64_t stride, int blocks, float* c, PanelScratch& s) {
  if (rows <= kStreamRows) return stream_panel<IntegerStream>(x, rows, o, w, data, stride, blocks, c);
  const bool is_int4 = w.format == fulmen::kINT4, two = o.planes == 2;
  const int64_t group_bytes = w.group * (is_int4 ? 8 : 16) + 64;
  for (int64_t r = 0; r < rows; r += kIntegerRows) {
    const int64_t some = least(kIntegerRows, rows - r);
    for (int64_t i = 0; i < o.groups; ++i) {
      const uint8_t* from = data + i * group_bytes;
      Group g{i, i * w.group, w.group, from, stride, s.scales, nullptr};
      if (is_int4) spread_int4(from, stride, blocks, w.group, s, g);
      else
        for (int b = 0; b < blocks; ++b) store(s.scales + b * kLanes, load((const float*)(from + b * stride + w.group * 16)));
#ifdef FULMEN_AMX
      if (some >= 16 && w.group % 64 == 0) {
        tile_group(x + r, some, blocks, o, g, c + r * kPanel);
        continue;
      }
#endif
      NextWeights next(i + 1 < o.groups ? from + group_bytes : nullptr, stride, group_bytes, blocks, some);
      float* to = c + r * kPanel;
      if (is_int4) two ? add_group_all<true, 2>(some, blocks, x + r, o, g, to, next) : add_group_all<true, 1>(some, blocks, x + r, o, g, to, next);
      else two ? add_group_all<false, 2>(some, blocks, x + r, o, g, to, next) : add_group_all<false, 1>(some, blocks, x + r, o, g, to, next);
    }
  }
}

static inline void bf16_block(const uint8_t* const* x, int64_t rows, int blocks, int64_t offset, const uint8_t* w, int64_t stride,
                              int64_t k, float* c, NextWeights& next) {
#ifdef FULMEN_AMX
  tile_bf16(x, rows, blocks, offset, w, stride, k, c, next);
#else
  tile_all<TileBF16>(rows, blocks, x, offset, w, stride, k, c, next);
#endif
}

// FP8 for few rows, straight into registers.
template <int R, int B>
static inline void fp8_stream(const uint8_t* const* x, const Operand& o, const Matrix& w, const uint8_t* data, int64_t stride, float* c) {
  V sums[R][B];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) sums[r][b] = zero();
  for (int64_t g = 0; g < o.k / w.group; ++g) {
    V part[R][B];
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) part[r][b] = zero();
    for (int64_t i = g * w.group / 2; i < (g + 1) * w.group / 2; ++i) {
      for (int b = 0; b < B; ++b) {
        const Pairs weights = load_fp8(data + b * stride + i * 32);
        prefetch(data + b * stride + i * 32 + 2048);
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
      const V scale = load((const float*)(data + b * stride + o.k * 16) + g * kLanes);
      for (int r = 0; r < R; ++r) sums[r][b] = fma(part[r][b], scale, sums[r][b]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < B; ++b) store(c + r * kPanel + b * kLanes, sums[r][b]);
}

struct FP8Stream {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, const Operand& o, const Matrix& w, const uint8_t* data, int64_t stride, float* c) {
    fp8_stream<R, B>(x, o, w, data, stride, c);
  }
};

static inline void fp8_panel(const uint8_t* const* x, int64_t rows, const Operand& o, const Matrix& w, const uint8_t* data,
                             int64_t stride, int blocks, float* c, PanelScratch& s) {
#ifdef FULMEN_AMX
  const bool streams = o.wide && rows <= kStreamRows;  // the tiles add pairs in an order of their own
#else
  const bool streams = rows <= kStreamRows;
#endif
  if (streams) return stream_panel<FP8Stream>(x, rows, o, w, data, stride, blocks, c);
  const int64_t groups = o.k / w.group, wide_stride = 32 * kMaxGroup;
  NextWeights none(nullptr, 0, 0, 0, 1);
  for (int64_t g = 0; g < groups; ++g) {
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* block = data + b * stride;
      for (int i = 0; i < w.group / 2; ++i)
        store_pairs((uint8_t*)s.bf16 + b * wide_stride + i * 64, load_fp8(block + (g * w.group / 2 + i) * 32));
      store(s.scales + b * kLanes, load((const float*)(block + o.k * 16) + g * kLanes));
    }
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int some = int(least(kTileRows, rows - r));
      memset(s.block_sums, 0, sizeof(float) * size_t(some) * kPanel);
      const uint8_t* weights = (const uint8_t*)s.bf16;
      if (o.wide) tile_rows<TileWide>(some, blocks, x + r, g * w.group, weights, wide_stride, w.group, s.block_sums);
      else bf16_block(x + r, some, blocks, g * w.group, weights, wide_stride, w.group, s.block_sums, none);
      for (int i = 0; i < some; ++i)
        for (int b = 0; b < blocks; ++b) {
          float* to = c + (r + i) * kPanel + b * kLanes;
          store(to, fma(load(s.block_sums + i * kPanel + b * kLanes), load(s.scales + b * kLanes), load(to)));
        }
    }
  }
}

// c (rows, kPanel) = x w^T for the blocks from first_block; every row of x in o's layout.
static void panel(const uint8_t* const* x, int64_t rows, const Operand& o, const Matrix& w, int64_t first_block, int blocks,
                  float* c) {
  const int64_t stride = block_bytes(w);
  const uint8_t* data = w.data + first_block * stride;
  memset(c, 0, sizeof(float) * size_t(rows) * kPanel);
  PanelScratch s;
  if (o.integer) return integer_panel(x, rows, o, w, data, stride, blocks, c, s);
  if (w.format == fulmen::kFP8) return fp8_panel(x, rows, o, w, data, stride, blocks, c, s);
  const bool is_f32 = w.format == fulmen::kF32;
  const int64_t step = is_f32 ? 128 : 256, bytes = is_f32 ? 64 : 32;  // of one input in a block
  const int more = int(least(blocks, num_blocks(w) - first_block - blocks));  // of the panel after this
  for (int64_t k = 0; k < o.k; k += step) {
    const int64_t size = least(step, o.k - k), after = least(step, o.k - k - size);
    NextWeights next = after > 0 ? NextWeights(data + (k + size) * bytes, stride, after * bytes, blocks, rows)
                            : NextWeights(more > 0 ? data + blocks * stride : nullptr, stride, least(step, o.k) * bytes, more, rows);
    if (is_f32) tile_all<TileF32>(rows, blocks, x, k, data + k * 64, stride, size, c, next);
    else if (o.wide) tile_all<TileWide>(rows, blocks, x, k, data + k * 32, stride, size, c, next);
    else bf16_block(x, rows, blocks, k, data + k * 32, stride, size, c, next);
  }
}

}  // namespace ISA
