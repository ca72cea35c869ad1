// Rows of activations, laid out for a packed matrix.
#pragma once

#include "kernels.h"
#include "vec.h"

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
// Inputs of 16 bits are multiplied as two planes of bytes, or where no instruction multiplies bytes
// of any size, as words.
#if defined(FULMEN_VNNI) || defined(FULMEN_AMX)
constexpr bool kWords = false;
#else
constexpr bool kWords = true;
#endif
constexpr int kMaxGroup = 128;  // inputs that share a scale
constexpr int kRun = 4;         // groups of codebook4 whose scales share a line
constexpr int kSumRows = 192;   // rows whose sums of a panel stay in the second-level cache

static inline int64_t padded_k(const Matrix& w) {
  switch (w.format) {
    case fulmen::kF32:
      return w.k;
    case fulmen::kBF16:
      return round_up(w.k, 32);
    default:
      return round_up(w.k, w.group);
  }
}

static inline int64_t block_bytes(const Matrix& w) {
  const int64_t k = padded_k(w), groups = w.group ? k / w.group : 0;
  switch (w.format) {
    case fulmen::kF32:
      return k * 64;
    case fulmen::kBF16:
      return k * 32;
    case fulmen::kFP8:
      return k * 16 + groups * 64;
    case fulmen::kINT8:
      return k * 16 + groups * 64;
    case fulmen::kINT4:
      return k * 8 + groups * 64;
    case fulmen::kCODEBOOK4:
      return k * 8 + (groups + kRun - 1) / kRun * 64 + 64;
  }
  return 0;
}

static inline int64_t num_blocks(const Matrix& w) { return (w.n + kLanes - 1) / kLanes; }
static inline bool is_integer(const Matrix& w) {
  return w.format == fulmen::kINT8 || w.format == fulmen::kINT4 || w.format == fulmen::kCODEBOOK4;
}

// Layout of rows of activations for a matrix.
//   float32  [k]            for float32 weights, and for bf16 and fp8 weights in a float32 model
//   bf16     [k]            for bf16 and fp8 weights
//   integer  planes of [k] int8, then [groups] float32 scales and [groups] int32 sums, k padded to
//            groups; x is scale (256 high + low), or scale times the one plane. Words lie in the
//            planes' place: of each four inputs, the first plane has 0 and 2, the second 1 and 3.
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

// True if rows of x can be read where they are.
static inline bool is_ready(const Operand& o, Dtype x, int64_t k) {
  return !o.integer && o.wide == (x == fulmen::kFloat32) && o.k == k;
}

// One group of a row as integers: the largest value becomes 127, or 32512 = 127 * 256 in two
// planes, whose high one then stays below 128.
template <class T, int kPlanes>
static inline void quantise_group(const T* x, int64_t count, int group, int8_t* high, int8_t* low,
                                  float* scale, int32_t* sum_of) {
  constexpr float top = kPlanes == 2 ? 32512.0f : 127.0f;
  V values[kMaxGroup / kLanes];
  V most = zero(), poison = zero();  // a NaN or infinity has no code: it makes the scale NaN
  const int vectors = group / kLanes;
  for (int i = 0; i < vectors; ++i) {
    const int64_t rest = count - i * kLanes;
    values[i] = rest >= kLanes ? load(x + i * kLanes)
                : rest > 0     ? load_n(x + i * kLanes, int(rest))
                               : zero();
    most = max(abs(values[i]), most);
    poison = fma(values[i], zero(), poison);
  }
  // In any order: the maximum and the sum of integers below 2^24 are exact.
  const float range = quick_largest(most),
              inverse =
                  range > 1e-34f ? top / range : 0.0f;  // less is 0: the quotient would overflow
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
    if (kWords) {
      store_words(high + i * kLanes, low + i * kLanes, q);
      continue;
    }
    const V h = round(mul(q, set1(1.0f / 256.0f)));
    // q - 256 h is between -128 and 128; ties to even make 128 possible, where -128 and h + 1 say
    // the same
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
    if (o.planes == 2)
      quantise_group<T, 2>(x + from, k - from, group, high + from, low + from, scales + g,
                           sums + g);
    else
      quantise_group<T, 1>(x + from, k - from, group, high + from, nullptr, scales + g, sums + g);
  }
}

// One row in the operand's layout.
template <class T>
static inline void prepare_row(const T* x, int64_t k, const Operand& o, int group, uint8_t* out) {
  if (o.integer) return quantise(x, k, o, group, out);
  const int size = o.wide ? 4 : 2;
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    if (o.wide)
      store((float*)out + i, load(x + i));
    else
      store((uint16_t*)out + i, load(x + i));
  }
  if (i < k) {
    const int n = int(k - i);
    if (o.wide)
      store_n((float*)out + i, load_n(x + i, n), n);
    else
      store_n((uint16_t*)out + i, load_n(x + i, n), n);
  }
  if (o.k > k) memset(out + k * size, 0, size_t((o.k - k) * size));
}

}  // namespace ISA
