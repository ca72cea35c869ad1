// Products on AMX tiles: bf16 for any number of rows, integers for sixteen and more.
//
// A tile of bf16 weights is 16 rows of 16 column pairs: 32 inputs of one packed block. A tile of x
// is up to 16 rows of 32 inputs. Of an output the hardware adds the products of even inputs in
// their order, those of odd ones in theirs, then both to what was there; so one row alone gives the
// bits it gives among sixteen.
#pragma once

#include "vec.h"

namespace ISA {

#ifdef FULMEN_AMX_EMULATED

// The tile instructions, written out.
struct TileState {
  int rows[8];
  int bytes[8];
  alignas(64) uint8_t data[8][16][64];
};
static thread_local TileState tile_state;

struct TileConfig {
  uint8_t palette, start_row;
  uint8_t reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

static inline void load_config(const TileConfig& config) {
  for (int t = 0; t < 8; ++t) {
    tile_state.rows[t] = config.rows[t];
    tile_state.bytes[t] = config.bytes[t];
  }
}
static inline void release_tiles() {}
template <int T>
static inline void tile_zero() {
  memset(tile_state.data[T], 0, sizeof tile_state.data[T]);
}
template <int T>
static inline void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < tile_state.rows[T]; ++r)
    memcpy(tile_state.data[T][r], (const uint8_t*)from + r * stride, size_t(tile_state.bytes[T]));
}
template <int T>
static inline void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < tile_state.rows[T]; ++r)
    memcpy((uint8_t*)to + r * stride, tile_state.data[T][r], size_t(tile_state.bytes[T]));
}
template <int C, int A, int B>
static inline void tile_dot_bf16() {
  for (int r = 0; r < tile_state.rows[C]; ++r) {
    V evens = zero(), odds = zero();
    for (int k = 0; k < tile_state.rows[B]; ++k) {
      const Pairs a = set1_pair(tile_state.data[A][r] + 4 * k),
                  b = load_pairs(tile_state.data[B][k]);
      evens = fma(even(a), even(b), evens);
      odds = fma(odd(a), odd(b), odds);
    }
    float* sums = (float*)tile_state.data[C][r];
    store(sums, add(load(sums), add(evens, odds)));
  }
}
template <int C, int A, int B>
static inline void tile_dot_int8() {  // signed times unsigned
  for (int r = 0; r < tile_state.rows[C]; ++r) {
    I acc = load((const int32_t*)tile_state.data[C][r]);
    for (int k = 0; k < tile_state.rows[B]; ++k)
      acc = dot(acc, load_quads(tile_state.data[B][k]), set1_quad(tile_state.data[A][r] + 4 * k));
    store((int32_t*)tile_state.data[C][r], acc);
  }
}

#else

struct alignas(64) TileConfig {
  uint8_t palette, start_row;
  uint8_t reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

// Written as assembly: gcc's macros want the tile's number as a literal, and its configuration may
// lose the stores before it (gcc 12 does not know that the instruction reads memory).
static inline void load_config(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
static inline void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
template <int T>
static inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
static inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
static inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
static inline void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// signed times unsigned
template <int C, int A, int B>
static inline void tile_dot_int8() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif
// Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.

// width  bytes of a row of x in a tile, at most 64
static inline void configure(int rows, int width = 64) {
  TileConfig config{};
  config.palette = 1;
  const int top = rows < 16 ? rows : 16, bottom = rows - top;
  const int of_tile[8] = {top, top, bottom, bottom, top, bottom, width / 4, width / 4};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = uint8_t(of_tile[t]);
    const int bytes = t == 4 || t == 5 ? width : 64;
    config.bytes[t] = uint16_t(of_tile[t] ? bytes : 0);
  }
  load_config(config);
}

// Activations as a tile can load them: evenly spaced rows, gathered where they are not.
struct TileRows {
  const uint8_t* data;
  int64_t stride;
};
constexpr int kTileBytes = 512;  // of a row in a K block: 256 bf16, or 128 codes

static inline TileRows even_rows(const uint8_t* const* x, int rows, int64_t from, int64_t bytes,
                                 uint8_t* gathered) {
  const int64_t stride = rows > 1 ? x[1] - x[0] : 0;
  bool even = true;
  for (int r = 2; r < rows; ++r) even = even && x[r] - x[r - 1] == stride;
  if (even) return {x[0] + from, stride};
  for (int r = 0; r < rows; ++r) memcpy(gathered + r * kTileBytes, x[r] + from, size_t(bytes));
  return {gathered, kTileBytes};
}

}  // namespace ISA
