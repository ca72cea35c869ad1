// Tiles of float32 sums in registers: R rows by B blocks of 16 columns, continued from c.
#pragma once

#include "operand.h"
#include "vec.h"

namespace ISA {

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
  static inline void run(const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride,
                         int64_t k, float* c) {
    Sums<R, B> s;
    s.load_from(c);
    const float* a[R];
    for (int r = 0; r < R; ++r) a[r] = (const float*)x[r] + offset;
    for (int64_t i = 0; i < k; ++i) {
      V b[B];
#pragma GCC unroll 8
      for (int j = 0; j < B; ++j) b[j] = load((const float*)(w + j * stride) + i * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        V value = set1(a[r][i]);
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) s.v[r][j] = fma(value, b[j], s.v[r][j]);
      }
    }
    s.store_to(c);
  }
};

struct TileBF16 {
  template <int R, int B>
  static inline void run(const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride,
                         int64_t k, float* c) {
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
  static inline void run(const uint8_t* const* x, int64_t offset, const uint8_t* w, int64_t stride,
                         int64_t k, float* c) {
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
static inline void tile_rows(int rows, int blocks, const uint8_t* const* x, int64_t offset,
                             const uint8_t* w, int64_t stride, int64_t k, float* c) {
  for (int b = 0; b < blocks;) {
    const int wide = blocks - b >= kTileBlocks ? kTileBlocks : 1;
    const uint8_t* from = w + b * stride;
    float* to = c + b * kLanes;
    if (wide == 1) {
      switch (rows) {
        case 1:
          T::template run<1, 1>(x, offset, from, stride, k, to);
          break;
        case 2:
          T::template run<2, 1>(x, offset, from, stride, k, to);
          break;
#ifdef FULMEN_AVX512
        case 3:
          T::template run<3, 1>(x, offset, from, stride, k, to);
          break;
        case 4:
          T::template run<4, 1>(x, offset, from, stride, k, to);
          break;
        case 5:
          T::template run<5, 1>(x, offset, from, stride, k, to);
          break;
        case 6:
          T::template run<6, 1>(x, offset, from, stride, k, to);
          break;
#endif
      }
    } else {
      switch (rows) {
        case 1:
          T::template run<1, kTileBlocks>(x, offset, from, stride, k, to);
          break;
        case 2:
          T::template run<2, kTileBlocks>(x, offset, from, stride, k, to);
          break;
#ifdef FULMEN_AVX512
        case 3:
          T::template run<3, kTileBlocks>(x, offset, from, stride, k, to);
          break;
        case 4:
          T::template run<4, kTileBlocks>(x, offset, from, stride, k, to);
          break;
        case 5:
          T::template run<5, kTileBlocks>(x, offset, from, stride, k, to);
          break;
        case 6:
          T::template run<6, kTileBlocks>(x, offset, from, stride, k, to);
          break;
#endif
      }
    }
    b += wide;
  }
}

// The weights of the next step, asked for some lines at a time while this step multiplies: the
// first rows to meet them would wait for memory, which all others then leave idle.
struct NextWeights {
  const uint8_t* from;    // null: nothing
  int64_t stride, bytes;  // from block to block, and of each
  int blocks;
  int64_t share;  // lines to ask for at a time
  int64_t at = 0;

  NextWeights(const uint8_t* from, int64_t stride, int64_t bytes, int blocks, int64_t rows)
      : from(rows > kMinRows ? from : nullptr),
        stride(stride),
        bytes(bytes),
        blocks(blocks),
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

  static constexpr int64_t kMinRows =
      24;  // fewer read front to back, where the machine guesses what comes
};

template <class T>
static inline void tile_all(int64_t rows, int blocks, const uint8_t* const* x, int64_t offset,
                            const uint8_t* w, int64_t stride, int64_t k, float* c,
                            NextWeights& next) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    tile_rows<T>(int(least(kTileRows, rows - r)), blocks, x + r, offset, w, stride, k,
                 c + r * kPanel);
    next.ask();
  }
}

// `tile_all` of float32. On AVX2, whose registers hold less, a block stays in the first-level cache
// while all rows go by, six at a time: a third fewer loads than squares take.
static inline void tile_f32(int64_t rows, int blocks, const uint8_t* const* x, int64_t offset,
                            const uint8_t* w, int64_t stride, int64_t k, float* c,
                            NextWeights& next) {
#ifdef FULMEN_AVX512
  tile_all<TileF32>(rows, blocks, x, offset, w, stride, k, c, next);
#else
  constexpr int tall = 6;
  const int64_t whole = rows / tall * tall;
  for (int b = 0; b < blocks && whole > 0; ++b)
    for (int64_t r = 0; r < whole; r += tall) {
      TileF32::run<tall, 1>(x + r, offset, w + b * stride, stride, k, c + r * kPanel + b * kLanes);
      next.ask();
    }
  tile_all<TileF32>(rows - whole, blocks, x + whole, offset, w, stride, k, c + whole * kPanel,
                    next);
#endif
}

// Unpacked weights, in the first-level cache while a panel is multiplied.
struct alignas(64) PanelScratch {
  uint8_t codes[kPanel * kMaxGroup];  // of 4 bits, spread to bytes
  uint16_t bf16[kPanel * kMaxGroup];  // fp8 as bf16
  float scales[kPanel], offsets[kPanel];
  float block_sums[kTileRows * kPanel];
};

// Rounded weights are unpacked as they are read, and the machine's own guesses then come too late.
// So each group is asked for while one some groups before it is read: past the end of a block,
// groups of `then`, the block this thread reads next.
constexpr int64_t kStreamAhead = 4096;  // bytes

struct Ahead {
  const uint8_t *from, *then;
  int64_t groups;  // of a block
  int64_t lead;    // groups from what is read to what is asked for
  Ahead(const uint8_t* from, const uint8_t* then, int64_t groups, int64_t group_bytes)
      : from(from), then(then), groups(groups) {
    lead = least(groups, group_bytes < kStreamAhead ? kStreamAhead / group_bytes : 1);
  }
  // the block and the group in it to ask for while group g is read
  const uint8_t* block(int64_t g) const { return g + lead < groups ? from : then; }
  int64_t group(int64_t g) const { return g + lead < groups ? g + lead : g + lead - groups; }
};

// Up to this many rows stream; each four pass over the panel, which the second time lies in a
// cache.
constexpr int kStreamRows = 12;

template <class S>
static inline void stream_panel(const uint8_t* const* x, int64_t rows, const Operand& o,
                                const Matrix& w, const uint8_t* data, int64_t stride, int blocks,
                                float* c, const uint8_t* then) {
  constexpr int kNarrow = kTileBlocks / 2;  // blocks beside each other for three and four rows
  for (int64_t r = 0; r < rows; r += 4) {
    const int some = int(least(4, rows - r)), wide = some <= 2 ? kTileBlocks : kNarrow;
    for (int b = 0; b < blocks;) {
      const uint8_t* from = data + b * stride;
      float* to = c + r * kPanel + b * kLanes;
      const bool one = blocks - b < wide;
      const int after = b + (one ? 1 : wide);
      const uint8_t* next = after < blocks ? data + after * stride : r + 4 < rows ? data : then;
      switch (some) {
        case 1:
          one ? S::template run<1, 1>(x + r, o, w, from, stride, to, next)
              : S::template run<1, kTileBlocks>(x + r, o, w, from, stride, to, next);
          break;
        case 2:
          one ? S::template run<2, 1>(x + r, o, w, from, stride, to, next)
              : S::template run<2, kTileBlocks>(x + r, o, w, from, stride, to, next);
          break;
        case 3:
          one ? S::template run<3, 1>(x + r, o, w, from, stride, to, next)
              : S::template run<3, kNarrow>(x + r, o, w, from, stride, to, next);
          break;
        case 4:
          one ? S::template run<4, 1>(x + r, o, w, from, stride, to, next)
              : S::template run<4, kNarrow>(x + r, o, w, from, stride, to, next);
          break;
      }
      b = after;
    }
  }
}

}  // namespace ISA
