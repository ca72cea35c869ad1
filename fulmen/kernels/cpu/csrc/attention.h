// Softmax attention over pages, and the normalisation and rotation before it.
//
// A row is one query head of one token. It meets its keys in tiles of 64, a page each, counted from
// position 0: scores, their running maximum and sum, then the weighted values, key after key. Rows
// share registers and tasks, never arithmetic: each output is one chain of operations whose length
// and order follow from the row's own position. So a token's result is the same in a prompt, in any
// part of a prompt, and decoded alone; what lies beyond its position is never multiplied into it.
#pragma once

#include "attention_args.h"

namespace ISA {
namespace attention {

using fulmen::kPage;

// The left operand of both products, queries and weights: broadcast from memory. Where bf16 pairs
// have no instruction it holds the same values as float32, which saves widening them every time.
template <class T>
struct Left {
  using Type = float;
};
#ifdef FULMEN_BF16
template <>
struct Left<uint16_t> {
  using Type = uint16_t;
};
#endif

// Elements of the sum that stand side by side in the right operand.
template <class T>
constexpr int kPair = sizeof(T) == 2 ? 2 : 1;

// Accumulators of a block: kRows x kColumns vectors, as many as the registers hold.
constexpr int kRows = 6;
#ifdef FULMEN_AVX512
constexpr int kColumns = 4;
#else
constexpr int kColumns = 1;
#endif

static inline V right(const float* p, int) { return load(p); }
static inline V right(const uint16_t* p, int half) {
  return half ? odd(load_pairs(p)) : even(load_pairs(p));
}

// acc[r][c] += sum over one step (an element, or a pair of them in order) of a[r] b[c]. Fetching
// `next` here, line by line, is what lets a decoded token read pages at the speed of memory.
template <int R, int C, class A, class T>
static inline void step(V (&acc)[R][C], const A* a, int64_t a_stride, const T* b, const T* next) {
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
    _mm_prefetch((const char*)(next + c * kPair<T> * kLanes), _MM_HINT_T0);
#ifdef FULMEN_BF16
  if constexpr (sizeof(A) == 2) {
    Pairs columns[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) columns[c] = load_pairs(b + c * 2 * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Pairs row = set1_pair(a + r * a_stride);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = dot(acc[r][c], row, columns[c]);
    }
    return;
  }
#endif
#pragma GCC unroll 2
  for (int half = 0; half < kPair<T>; ++half) {
    V columns[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) columns[c] = right(b + c * kPair<T> * kLanes, half);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      V row = set1(float(a[r * a_stride + half]));
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(row, columns[c], acc[r][c]);
    }
  }
}

// out (R, 16 C) = factor[r] out + a (R, steps) b (steps, 16 C), or only the product where factor is
// null. b_stride is the distance of two steps; next is like b, to be fetched for later.
template <int R, int C, class A, class T>
static inline void multiply(float* out, int64_t out_stride, const float* factor, const A* a,
                            int64_t a_stride, const T* b, const T* next, int64_t b_stride,
                            int64_t steps) {
  V acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      acc[r][c] = factor == nullptr ? zero()
                                    : mul(load(out + r * out_stride + c * kLanes), set1(factor[r]));
  for (int64_t i = 0; i < steps; ++i)
    step<R, C>(acc, a + i * kPair<T>, a_stride, b + i * b_stride, next + i * b_stride);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + r * out_stride + c * kLanes, acc[r][c]);
}

// `multiply` for any number of columns.
template <int R, class A, class T>
static inline void multiply_all(float* out, int64_t out_stride, const float* factor, const A* a,
                                int64_t a_stride, const T* b, const T* next, int64_t b_stride,
                                int64_t steps, int64_t columns) {
  constexpr int pair = kPair<T>;
  int64_t c = 0;
  for (; c + kColumns * kLanes <= columns; c += kColumns * kLanes)
    multiply<R, kColumns>(out + c, out_stride, factor, a, a_stride, b + c * pair, next + c * pair,
                          b_stride, steps);
  for (; c < columns; c += kLanes)
    multiply<R, 1>(out + c, out_stride, factor, a, a_stride, b + c * pair, next + c * pair,
                   b_stride, steps);
}

static inline V rounded(V x, const float*) { return x; }
static inline V rounded(V x, const uint16_t*) {
#ifdef FULMEN_AVX512
  return widen16(narrow16(x));
#else
  return {widen8(narrow8(x.a)), widen8(narrow8(x.b))};
#endif
}

// Rows of one task, side by side.
template <class T>
struct Rows {
  using A = typename Left<T>::Type;
  A* q;          // (rows, padded)
  float* acc;    // (rows, padded)
  float* total;  // (rows, 16): running sums of the weights, to be added across
  float* peak;   // (rows): running maxima
  T* last;       // (padded, 2): a pair of values without its second
  int64_t dim, padded;
  float scale;  // log2(e) / sqrt(D)
};

// The keys and values of one head in one page.
template <class T>
struct Page {
  const T *k, *v;
  const float *k_scales, *v_scales;  // (64), what codes are to be multiplied by, or null
};

// 2^x for x <= 0 (Cephes' polynomial); exactly 0 below -126.5, so also for -inf; NaN stays NaN.
static inline V exp2_down(V x) {
  V clipped = max(set1(-127.0f), x);  // the second operand for NaN
  V n = round(clipped), r = sub(clipped, n);
  V p = set1(1.535336188319500e-4f);
  p = fma(p, r, set1(1.339887440266574e-3f));
  p = fma(p, r, set1(9.618437357674640e-3f));
  p = fma(p, r, set1(5.550332471162809e-2f));
  p = fma(p, r, set1(2.402264791363012e-1f));
  p = fma(p, r, set1(6.931472028550421e-1f));
  return scale2(fma(p, r, set1(1.0f)), n);  // for n = -127 a factor of 0
}

// Scores (R, 64) -> weights (R, 64): 2^(score log2(e) / sqrt(D) - peak), which is e^ of the same in
// its own base. Updates the running maximum and sum; `factor` is what earlier sums are to be
// multiplied by.
template <class T, int R>
static inline void weigh(Rows<T>& rows, int64_t row, Page<T> page, float* scores,
                         const int64_t* visible, typename Left<T>::Type* weights, float* factor) {
  const V nothing = set1(-__builtin_inff()), scale = set1(rows.scale);
  alignas(64) float drop[kLanes] = {0};
  for (int r = 0; r < R; ++r) {
    float* s = scores + r * kPage;
    if (page.k_scales != nullptr)
      for (int c = 0; c < kPage; c += kLanes)
        store(s + c, mul(load(s + c), load(page.k_scales + c)));
    if (visible[r] < kPage)
      for (int c = 0; c < kPage; c += kLanes)
        store(s + c, first_of(int(visible[r]) - c, load(s + c), nothing));
    const V most =
        max(max(load(s), load(s + kLanes)), max(load(s + 2 * kLanes), load(s + 3 * kLanes)));
    const float before = rows.peak[row + r], here = quick_largest(most) * rows.scale;
    rows.peak[row + r] = here > before ? here : before;
    drop[r] = before - rows.peak[row + r];
  }
  store(factor, exp2_down(load(drop)));
  for (int r = 0; r < R; ++r) {
    const V peak = set1(-rows.peak[row + r]);
    V part[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      part[c] = exp2_down(fma(load(scores + r * kPage + c * kLanes), scale, peak));
      if (page.v_scales == nullptr) {
        part[c] =
            rounded(part[c], (const T*)nullptr);  // the sum is of the weights as they are used
        store(weights + r * kPage + c * kLanes, part[c]);
      } else {
        const V scaled = mul(part[c], load(page.v_scales + c * kLanes));
        const V used =
            first_of(int(visible[r]) - c * kLanes, scaled, zero());  // a stale scale may be NaN
        store(weights + r * kPage + c * kLanes, rounded(used, (const T*)nullptr));
      }
    }
    float* total = rows.total + (row + r) * kLanes;
    const V sum = add(add(part[0], part[1]), add(part[2], part[3]));
    store(total, add(mul(load(total), set1(factor[r])), sum));
  }
}

// R rows meet a page. visible[r] is how many of its keys stand at or before row r, at least one,
// and does not fall from row to row.
template <class T, int R>
static void meet(Rows<T>& rows, int64_t row, Page<T> page, Page<T> next, const int64_t* visible) {
  using A = typename Left<T>::Type;
  constexpr int pair = kPair<T>;
  alignas(64) float scores[R * kPage];
  alignas(64) A weights[R * kPage];
  alignas(64) float factor[kLanes];
  const int64_t padded = rows.padded, v_step = padded * pair,
                k_steps = (rows.dim + pair - 1) / pair;
  multiply_all<R>(scores, kPage, nullptr, rows.q + row * padded, padded, page.k, next.k,
                  kPage * pair, k_steps, kPage);
  weigh<T, R>(rows, row, page, scores, visible, weights, factor);

  // All rows together while all see both keys of a pair, the rest of each row alone: no value
  // beyond a row's position takes part, were it infinite or never written.
  const int64_t shared = visible[0] / pair;
  multiply_all<R>(rows.acc + row * padded, padded, factor, weights, kPage, page.v, next.v, v_step,
                  shared, padded);
  const float one = 1.0f;
  for (int r = 0; r < R; ++r) {
    if (visible[r] == shared * pair) continue;
    float* acc = rows.acc + (row + r) * padded;
    const A* w = weights + r * kPage;
    const T* v = page.v + shared * v_step;
    const int64_t whole = visible[r] / pair;
    multiply_all<1>(acc, padded, &one, w + shared * pair, kPage, v, v, v_step, whole - shared,
                    padded);
    if constexpr (pair == 2) {
      if (visible[r] % 2 == 0) continue;
      for (int64_t d = 0; d < v_step; d += 2) {
        rows.last[d] = page.v[whole * v_step + d];
        rows.last[d + 1] = 0;
      }
      multiply_all<1>(acc, padded, &one, w + whole * 2, kPage, rows.last, rows.last, v_step, 1,
                      padded);
    }
  }
}

template <class T>
static void meet_some(Rows<T>& rows, int64_t row, int64_t count, Page<T> page, Page<T> next,
                      const int64_t* visible) {
  switch (count) {
    case 1:
      return meet<T, 1>(rows, row, page, next, visible);
    case 2:
      return meet<T, 2>(rows, row, page, next, visible);
    case 3:
      return meet<T, 3>(rows, row, page, next, visible);
    case 4:
      return meet<T, 4>(rows, row, page, next, visible);
    case 5:
      return meet<T, 5>(rows, row, page, next, visible);
    default:
      return meet<T, 6>(rows, row, page, next, visible);
  }
}

// Widens codes once for all rows of a task, and prefetches the next.
template <class T>
static inline void widen_codes(T* to, const int8_t* from, const int8_t* next, int64_t count) {
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    _mm_prefetch((const char*)(next + i), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int64_t j = i; j < i + 4 * kLanes; j += kLanes) {
#ifdef FULMEN_AVX512
      const I codes = {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + j)))};
#else
      const I codes = {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(from + j))),
                       _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(from + j + 8)))};
#endif
      store(to + j, to_float(codes));
    }
  }
}

// A head's pages, by their place in the sequence.
template <class T>
struct Pages {
  const fulmen::AttentionArgs& args;
  const int32_t* numbers;
  int64_t head, size;
  T* room;  // for a page of numbers, if they are held as codes

  int64_t index(int64_t i) const { return numbers[i] * args.num_kv_heads + head; }

  Page<T> plain(int64_t i) const {
    return {(const T*)args.k_pages + index(i) * size, (const T*)args.v_pages + index(i) * size,
            nullptr, nullptr};
  }

  Page<T> from_codes(int64_t i, int64_t next) const {
    const int64_t page = index(i), after = index(next);
    const int8_t *k = (const int8_t*)args.k_pages, *v = (const int8_t*)args.v_pages;
    widen_codes(room, k + page * size, k + after * size, size);
    widen_codes(room + size, v + page * size, v + after * size, size);
    return {room, room + size, args.k_scales + page * kPage, args.v_scales + page * kPage};
  }
};

static inline void copy_row(float* to, const float* from, int64_t n) {
  memcpy(to, from, size_t(n) * 4);
}
static inline void copy_row(uint16_t* to, const uint16_t* from, int64_t n) {
  memcpy(to, from, size_t(n) * 2);
}
static inline void copy_row(float* to, const uint16_t* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}

template <class T>
static void attend(const fulmen::AttentionArgs& args, int64_t task, int thread) {
  using A = typename Left<T>::Type;
  const fulmen::QueryBlock& block = args.blocks[task / args.num_kv_heads];
  const int64_t head = task % args.num_kv_heads, group = args.num_heads / args.num_kv_heads;
  const int64_t count = block.count * group, dim = args.head_dim, padded = fulmen::padded_dim(dim);

  Rows<T> rows;
  rows.dim = dim;
  rows.padded = padded;
  rows.scale = 1.44269504088896341f / __builtin_sqrtf(float(dim));
  const int64_t aligned = round_up(count, kLanes);
  float* memory =
      (float*)fulmen::scratch(thread, 0, size_t(aligned * (2 * padded + kLanes + 1) + padded) * 4);
  rows.acc = memory;
  rows.total = rows.acc + aligned * padded;
  rows.peak = rows.total + aligned * kLanes;
  rows.q = (A*)(rows.peak + aligned);
  rows.last = (T*)(rows.peak + aligned * (1 + padded));
  memset(memory, 0, size_t(aligned * (padded + kLanes)) * 4);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = block.token + r / group, query = head * group + r % group;
    A* q = rows.q + r * padded;
    copy_row(q, (const T*)args.q + token * args.q_token_stride + query * args.q_head_stride, dim);
    for (int64_t d = dim; d < padded; ++d) q[d] = 0;
    rows.peak[r] = -__builtin_inff();
  }

  const bool codes = args.k_scales != nullptr;
  const int64_t size = padded * kPage,
                num_pages = (block.position + block.count + kPage - 1) / kPage;
  const Pages<T> pages = {
      args, args.block_table + block.sequence * args.block_table_width, head, size,
      codes ? (T*)fulmen::scratch(thread, 1, size_t(2 * size) * sizeof(T)) : nullptr};
  for (int64_t i = 0; i < num_pages; ++i) {
    // The next page may lie anywhere in memory, so the first task to get here prefetches it.
    const int64_t after = i + 1 < num_pages ? i + 1 : i, start = i * kPage;
    const Page<T> page = codes ? pages.from_codes(i, after) : pages.plain(i);
    Page<T> next = codes ? page : pages.plain(after);
    // Rows of tokens before this page are done.
    for (int64_t row = most(0, start - block.position) * group; row < count; row += kRows) {
      const int64_t some = least(kRows, count - row);
      int64_t visible[kRows];
      for (int64_t r = 0; r < some; ++r)
        visible[r] = least(kPage, block.position + (row + r) / group + 1 - start);
      meet_some(rows, row, some, page, next, visible);
      next = page;
    }
  }

  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = block.token + r / group, query = head * group + r % group;
    T* out = (T*)args.out + (token * args.num_heads + query) * dim;
    const float sum_of = sum(load(rows.total + r * kLanes));
    const V total = set1(sum_of);
    if (args.row_sums != nullptr) {
      float* sums = args.row_sums + (token * args.num_heads + query) * 2;
      sums[0] = rows.peak[r];
      sums[1] = sum_of;
    }
    for (int64_t d = 0; d < dim; d += kLanes)
      store_n(out + d, div(load(rows.acc + r * padded + d), total), int(least(kLanes, dim - d)));
  }
}

static void attend_task(void* context, int64_t task, int thread) {
  const fulmen::AttentionArgs& args = *(const fulmen::AttentionArgs*)context;
  if (args.dtype == fulmen::kBFloat16) {
    attend<uint16_t>(args, task, thread);
  } else {
    attend<float>(args, task, thread);
  }
}

// 1 / sqrt(mean(x^2) + eps), the squares summed in four interleaved chains of 16 lanes
template <class T>
static float root_mean_square(const T* x, int64_t width, float eps) {
  V sums[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < width; i += kLanes) {
    V part = load_n(x + i, int(least(kLanes, width - i)));
    V& chain = sums[i / kLanes % 4];
    chain = fma(part, part, chain);
  }
  const float mean = sum(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) / float(width);
  return 1.0f / __builtin_sqrtf(mean + eps);
}

template <class T>
static void rotate_row(const fulmen::RotateArgs& args, const fulmen::RotateRows& rows,
                       int64_t token) {
  const int64_t width = rows.num_heads * args.head_dim, half = args.half;
  const T* x = (const T*)rows.x + token * rows.stride;
  T* out = (T*)rows.out + token * width;
  if (rows.weight == nullptr) {
    memcpy(out, x, size_t(width) * sizeof(T));
  } else {
    const V scale = set1(root_mean_square(x, width, args.eps));
    for (int64_t i = 0; i < width; i += kLanes) {
      const int n = int(least(kLanes, width - i));
      const V unit = rounded(mul(load_n(x + i, n), scale), x);
      store_n(out + i, mul(load_n((const T*)rows.weight + i, n), unit), n);
    }
  }
  for (int64_t head = 0; head < rows.num_heads; ++head) {
    T *first = out + head * args.head_dim, *second = first + half;
    for (int64_t j = 0; j < half; j += kLanes) {
      const int n = int(least(kLanes, half - j));
      const V a = load_n(first + j, n), b = load_n(second + j, n);
      const V cos = load_n(args.cos + token * half + j, n),
              sin = load_n(args.sin + token * half + j, n);
      store_n(first + j, sub(mul(a, cos), mul(b, sin)), n);
      store_n(second + j, add(mul(b, cos), mul(a, sin)), n);
    }
  }
}

constexpr int64_t kRotateTokens = 2;  // of a task

static void rotate_task(void* context, int64_t task, int) {
  const fulmen::RotateArgs& args = *(const fulmen::RotateArgs*)context;
  const int64_t end = least((task + 1) * kRotateTokens, args.num_tokens);
  for (int64_t token = task * kRotateTokens; token < end; ++token) {
    for (const fulmen::RotateRows& rows : args.rows) {
      if (args.dtype == fulmen::kBFloat16) {
        rotate_row<uint16_t>(args, rows, token);
      } else {
        rotate_row<float>(args, rows, token);
      }
    }
  }
}

}  // namespace attention

static void softmax_attention(const fulmen::AttentionArgs& args) {
  fulmen::parallel(args.num_blocks * args.num_kv_heads, attention::attend_task, (void*)&args);
}

static void rotate(const fulmen::RotateArgs& args) {
  using attention::kRotateTokens;
  fulmen::parallel((args.num_tokens + kRotateTokens - 1) / kRotateTokens, attention::rotate_task,
                   (void*)&args);
}

}  // namespace ISA
