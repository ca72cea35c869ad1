// The types of vec.h in one register of AVX-512, and what an instruction or two do with them.
#pragma once

#include "lanes.h"

namespace ISA {

struct V {
  __m512 x;
};
struct I {
  __m512i x;
};  // 16 int32
struct Pairs {
  __m512i x;
};  // 16 pairs of bf16
struct Quads {
  __m512i x;
};  // 16 quads of bytes

static inline __mmask16 first(int n) {
  return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1);
}

static inline V zero() { return {_mm512_setzero_ps()}; }
static inline V set1(float x) { return {_mm512_set1_ps(x)}; }
static inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline V load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
static inline void store(float* p, V v) { _mm512_storeu_ps(p, v.x); }
static inline void store_n(float* p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v.x); }
static inline V widen16(__m256i h) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
static inline V load(const uint16_t* p) { return widen16(_mm256_loadu_si256((const __m256i*)p)); }
static inline V load_n(const uint16_t* p, int n) {
  return widen16(_mm256_maskz_loadu_epi16(first(n), p));
}
static inline __m256i narrow16(V v) {
#ifdef FULMEN_BF16
  return (__m256i)_mm512_cvtneps_pbh(v.x);
#else
  __m512i bits = _mm512_castps_si512(v.x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(v.x, v.x, _CMP_UNORD_Q);
  near = _mm512_mask_or_epi32(near, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16));
#endif
}
static inline void store(uint16_t* p, V v) { _mm256_storeu_si256((__m256i*)p, narrow16(v)); }
static inline void store_n(uint16_t* p, V v, int n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow16(v));
}
static inline V add(V a, V b) { return {_mm512_add_ps(a.x, b.x)}; }
static inline V sub(V a, V b) { return {_mm512_sub_ps(a.x, b.x)}; }
static inline V mul(V a, V b) { return {_mm512_mul_ps(a.x, b.x)}; }
static inline V div(V a, V b) { return {_mm512_div_ps(a.x, b.x)}; }
static inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }  // a b + c
static inline V max(V a, V b) { return {_mm512_max_ps(a.x, b.x)}; }
static inline V min(V a, V b) { return {_mm512_min_ps(a.x, b.x)}; }
static inline V abs(V a) { return {_mm512_abs_ps(a.x)}; }
static inline V round(V a) {
  return {_mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline V to_float(I a) { return {_mm512_cvtepi32_ps(a.x)}; }
// 2^n x for an integral n between -126 and 127
static inline V scale2(V x, V n) {
  __m512i e =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.x), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(x.x, _mm512_castsi512_ps(e))};
}
// lanes below n from a, the others from b
static inline V first_of(int n, V a, V b) {
  return {_mm512_mask_blend_ps(first(n < 0 ? 0 : n), b.x, a.x)};
}
// a where x < limit, else b
static inline V where_less(V x, V limit, V a, V b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.x, limit.x, _CMP_LT_OQ), b.x, a.x)};
}

static inline I izero() { return {_mm512_setzero_si512()}; }
static inline void store(int32_t* p, I v) { _mm512_storeu_si512(p, v.x); }
static inline I load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline I set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I add(I a, I b) { return {_mm512_add_epi32(a.x, b.x)}; }
static inline I sub(I a, I b) { return {_mm512_sub_epi32(a.x, b.x)}; }
static inline I times_256(I a) { return {_mm512_slli_epi32(a.x, 8)}; }
static inline V load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
// 16 rounded values between -127 and 127 as bytes
static inline void store_bytes(int8_t* p, V v) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.x)));
}
// The same of 16 bits, as words: of each four values, 0 and 2 to even, 1 and 3 to odd
static inline void store_words(int8_t* even, int8_t* odd, V v) {
  const __m512i halves = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 2, 2, 2, 2, 2, 2, 2);
  const __m256i both = _mm512_castsi512_si256(
      _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(_mm512_cvtps_epi32(v.x), halves)));
  _mm_storeu_si128((__m128i*)even, _mm256_castsi256_si128(both));
  _mm_storeu_si128((__m128i*)odd, _mm256_extracti128_si256(both, 1));
}
// 16 signed bytes
static inline I load_bytes(const void* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))};
}
static inline I over_4(I a) { return {_mm512_srai_epi32(a.x, 2)}; }  // rounded down
static inline I modulo_4(I a) { return {_mm512_and_si512(a.x, _mm512_set1_epi32(3))}; }

static inline Pairs load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline Pairs set1_pair(const void* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
// acc + a.even b.even + a.odd b.odd
static inline V dot(V acc, Pairs a, Pairs b) {
#ifdef FULMEN_BF16
  return {_mm512_dpbf16_ps(acc.x, (__m512bh)a.x, (__m512bh)b.x)};
#else
  __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
  __m512 ae = _mm512_castsi512_ps(_mm512_slli_epi32(a.x, 16)),
         ao = _mm512_castsi512_ps(_mm512_and_si512(a.x, high));
  __m512 be = _mm512_castsi512_ps(_mm512_slli_epi32(b.x, 16)),
         bo = _mm512_castsi512_ps(_mm512_and_si512(b.x, high));
  return {_mm512_fmadd_ps(ao, bo, _mm512_fmadd_ps(ae, be, acc.x))};
#endif
}
static inline Quads load_quads(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store(uint8_t* p, Quads a) { _mm512_storeu_si512(p, a.x); }
static inline Quads set1_quad(const void* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
static inline Quads low_nibbles(Quads a) { return {_mm512_and_si512(a.x, _mm512_set1_epi8(15))}; }
static inline Quads high_nibbles(Quads a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.x, 4), _mm512_set1_epi8(15))};
}
// acc + sum of unsigned u times signed s over each quad
static inline I dot(I acc, Quads u, Quads s) {
#ifdef FULMEN_VNNI
  return {_mm512_dpbusd_epi32(acc.x, u.x, s.x)};
#else
  // vpmaddubsw saturates at 16 bits, so even and odd bytes are multiplied apart.
  __m512i low = _mm512_set1_epi16(0xff);
  __m512i ue = _mm512_and_si512(u.x, low), uo = _mm512_srli_epi16(u.x, 8);
  __m512i se = _mm512_srai_epi16(_mm512_slli_epi16(s.x, 8), 8), so = _mm512_srai_epi16(s.x, 8);
  return {_mm512_add_epi32(acc.x,
                           _mm512_add_epi32(_mm512_madd_epi16(ue, se), _mm512_madd_epi16(uo, so)))};
#endif
}
// acc + sum of u s + v t over each quad, u and v below 64
static inline I dot_pairs(I acc, Quads u, Quads s, Quads v, Quads t) {
  const __m512i pairs =
      _mm512_add_epi16(_mm512_maddubs_epi16(u.x, s.x), _mm512_maddubs_epi16(v.x, t.x));
  return {_mm512_add_epi32(acc.x, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
// acc + sum of unsigned bytes times words: even has those of inputs 0 and 2 of each quad, odd of 1,
// 3
static inline I dot_words(I acc, Quads u, Quads even, Quads odd) {
  const __m512i ue = _mm512_and_si512(u.x, _mm512_set1_epi16(0xff)), uo = _mm512_srli_epi16(u.x, 8);
  const __m512i first = _mm512_add_epi32(acc.x, _mm512_madd_epi16(ue, even.x));
  return {_mm512_add_epi32(first, _mm512_madd_epi16(uo, odd.x))};
}
// table[n] for every nibble n; the table has 16 bytes and is aligned to 16
static inline Quads lookup(const uint8_t* table, Quads nibbles) {
  const __m512i t = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)table));
  return {_mm512_shuffle_epi8(t, nibbles.x)};
}
// 32 bytes of float8 e4m3 as 32 bf16, exactly; 0x7f and 0xff, its NaNs, become NaN
static inline Pairs load_fp8(const void* p) {
  __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
  __m512i sign = _mm512_slli_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0x80)), 8);
  __m512i bits = _mm512_and_si512(x, _mm512_set1_epi16(0x7f));
  __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(bits, 4), _mm512_set1_epi16(120 << 7));
  // m 2^-9 for the eight subnormal codes
  const __m512i small = _mm512_castsi128_si512(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  __mmask32 is_small = _mm512_cmplt_epu16_mask(bits, _mm512_set1_epi16(8));
  __m512i out = _mm512_mask_permutexvar_epi16(normal, is_small, bits, small);
  __mmask32 nan = _mm512_cmpeq_epi16_mask(bits, _mm512_set1_epi16(0x7f));
  out = _mm512_mask_mov_epi16(out, nan, _mm512_set1_epi16(0x7fc0));
  return {_mm512_or_si512(out, sign)};
}
static inline V even(Pairs a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.x, 16))}; }
static inline V odd(Pairs a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.x, _mm512_set1_epi32(int32_t(0xffff0000))))};
}
static inline void store_pairs(void* p, Pairs a) { _mm512_storeu_si512(p, a.x); }
// 16 floats, looked up by their numbers
struct Table {
  __m512 x;
};
static inline Table load_table(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline V pick(const Table& table, I i) { return {_mm512_permutexvar_ps(i.x, table.x)}; }
// the same for numbers below 8, and from 8
static inline V pick_low(const Table& table, I i) { return pick(table, i); }
static inline V pick_high(const Table& table, I i) { return pick(table, i); }
// 2 n + 1 where x >= limit, else 2 n
static inline I child_of(I n, V x, V limit) {
  const __m512i twice = _mm512_add_epi32(n.x, n.x);
  const __mmask16 reached = _mm512_cmp_ps_mask(x.x, limit.x, _CMP_GE_OQ);
  return {_mm512_mask_add_epi32(twice, reached, twice, _mm512_set1_epi32(1))};
}

}  // namespace ISA
