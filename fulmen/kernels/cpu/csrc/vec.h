// Sixteen float32 lanes and what the kernels do with them, on AVX2 or AVX-512.
//
// Every kernel is written once on these types and compiled once for each instruction set, in a
// namespace of its own (ISA). Nothing here may come from the standard library: an inline function
// that the linker shares between sets would carry instructions the older machine lacks.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace ISA {

constexpr int kLanes = 16;

static inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

static inline float widen(uint16_t bf16) {
  uint32_t bits = uint32_t(bf16) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Nearest, ties to even; a NaN stays one.
static inline uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#ifdef FULMEN_AVX512

struct V { __m512 x; };
struct I { __m512i x; };      // 16 int32
struct Pairs { __m512i x; };  // 16 pairs of bf16
struct Quads { __m512i x; };  // 16 quads of bytes

static inline __mmask16 first(int n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

static inline V zero() { return {_mm512_setzero_ps()}; }
static inline V set1(float x) { return {_mm512_set1_ps(x)}; }
static inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline V load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
static inline void store(float* p, V v) { _mm512_storeu_ps(p, v.x); }
static inline void store_n(float* p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v.x); }
static inline V widen16(__m256i h) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))}; }
static inline V load(const uint16_t* p) { return widen16(_mm256_loadu_si256((const __m256i*)p)); }
static inline V load_n(const uint16_t* p, int n) { return widen16(_mm256_maskz_loadu_epi16(first(n), p)); }
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
static inline void store_n(uint16_t* p, V v, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow16(v)); }
static inline V add(V a, V b) { return {_mm512_add_ps(a.x, b.x)}; }
static inline V sub(V a, V b) { return {_mm512_sub_ps(a.x, b.x)}; }
static inline V mul(V a, V b) { return {_mm512_mul_ps(a.x, b.x)}; }
static inline V div(V a, V b) { return {_mm512_div_ps(a.x, b.x)}; }
static inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }  // a b + c
static inline V max(V a, V b) { return {_mm512_max_ps(a.x, b.x)}; }
static inline V min(V a, V b) { return {_mm512_min_ps(a.x, b.x)}; }
static inline V abs(V a) { return {_mm512_abs_ps(a.x)}; }
static inline V round(V a) { return {_mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline V to_float(I a) { return {_mm512_cvtepi32_ps(a.x)}; }
// 2^n x for an integral n between -126 and 127
static inline V scale2(V x, V n) {
  __m512i e = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.x), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(x.x, _mm512_castsi512_ps(e))};
}
// lanes below n from a, the others from b
static inline V first_of(int n, V a, V b) { return {_mm512_mask_blend_ps(first(n < 0 ? 0 : n), b.x, a.x)}; }
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
static inline V load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
// 16 rounded values between -127 and 127 as bytes
static inline void store_bytes(int8_t* p, V v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.x))); }

static inline Pairs load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline Pairs set1_pair(const void* p) { int32_t x; memcpy(&x, p, 4); return {_mm512_set1_epi32(x)}; }
// acc + a.even b.even + a.odd b.odd
static inline V dot(V acc, Pairs a, Pairs b) {
#ifdef FULMEN_BF16
  return {_mm512_dpbf16_ps(acc.x, (__m512bh)a.x, (__m512bh)b.x)};
#else
  __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
  __m512 ae = _mm512_castsi512_ps(_mm512_slli_epi32(a.x, 16)), ao = _mm512_castsi512_ps(_mm512_and_si512(a.x, high));
  __m512 be = _mm512_castsi512_ps(_mm512_slli_epi32(b.x, 16)), bo = _mm512_castsi512_ps(_mm512_and_si512(b.x, high));
  return {_mm512_fmadd_ps(ao, bo, _mm512_fmadd_ps(ae, be, acc.x))};
#endif
}
static inline Quads load_quads(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store(uint8_t* p, Quads a) { _mm512_storeu_si512(p, a.x); }
static inline Quads set1_quad(const void* p) { int32_t x; memcpy(&x, p, 4); return {_mm512_set1_epi32(x)}; }
static inline Quads low_nibbles(Quads a) { return {_mm512_and_si512(a.x, _mm512_set1_epi8(15))}; }
static inline Quads high_nibbles(Quads a) { return {_mm512_and_si512(_mm512_srli_epi16(a.x, 4), _mm512_set1_epi8(15))}; }
// acc + sum of unsigned u times signed s over each quad
static inline I dot(I acc, Quads u, Quads s) {
#ifdef FULMEN_VNNI
  return {_mm512_dpbusd_epi32(acc.x, u.x, s.x)};
#else
  // vpmaddubsw saturates at 16 bits, so even and odd bytes are multiplied apart.
  __m512i low = _mm512_set1_epi16(0xff);
  __m512i ue = _mm512_and_si512(u.x, low), uo = _mm512_srli_epi16(u.x, 8);
  __m512i se = _mm512_srai_epi16(_mm512_slli_epi16(s.x, 8), 8), so = _mm512_srai_epi16(s.x, 8);
  return {_mm512_add_epi32(acc.x, _mm512_add_epi32(_mm512_madd_epi16(ue, se), _mm512_madd_epi16(uo, so)))};
#endif
}
// 32 bytes of float8 e4m3 as 32 bf16, exactly; 0x7f and 0xff, its NaNs, become NaN
static inline Pairs load_fp8(const void* p) {
  __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
  __m512i sign = _mm512_slli_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0x80)), 8);
  __m512i bits = _mm512_and_si512(x, _mm512_set1_epi16(0x7f));
  __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(bits, 4), _mm512_set1_epi16(120 << 7));
  // m 2^-9 for the eight subnormal codes
  const __m512i small = _mm512_castsi128_si512(_mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  __mmask32 is_small = _mm512_cmplt_epu16_mask(bits, _mm512_set1_epi16(8));
  __m512i out = _mm512_mask_permutexvar_epi16(normal, is_small, bits, small);
  __mmask32 nan = _mm512_cmpeq_epi16_mask(bits, _mm512_set1_epi16(0x7f));
  out = _mm512_mask_mov_epi16(out, nan, _mm512_set1_epi16(0x7fc0));
  return {_mm512_or_si512(out, sign)};
}
static inline V even(Pairs a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.x, 16))}; }
static inline V odd(Pairs a) { return {_mm512_castsi512_ps(_mm512_and_si512(a.x, _mm512_set1_epi32(int32_t(0xffff0000))))}; }
static inline void store_pairs(void* p, Pairs a) { _mm512_storeu_si512(p, a.x); }

#else  // AVX2, FMA, F16C

struct V { __m256 a, b; };
struct I { __m256i a, b; };
struct Pairs { __m256i a, b; };
struct Quads { __m256i a, b; };

static inline __m256i lanes_below(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline V load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(n)), n > 8 ? _mm256_maskload_ps(p + 8, lanes_below(n - 8)) : _mm256_setzero_ps()};
}
static inline void store(float* p, V v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
static inline void store_n(float* p, V v, int n) {
  _mm256_maskstore_ps(p, lanes_below(n), v.a);
  if (n > 8) _mm256_maskstore_ps(p + 8, lanes_below(n - 8), v.b);
}
static inline __m256 widen8(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
static inline V load(const uint16_t* p) {
  return {widen8(_mm_loadu_si128((const __m128i*)p)), widen8(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline V load_n(const uint16_t* p, int n) {
  uint16_t part[16] = {0};
  memcpy(part, p, size_t(n < 16 ? n : 16) * 2);
  return load(part);
}
static inline __m128i narrow8(__m256 x) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  near = _mm256_blendv_epi8(near, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
  near = _mm256_srli_epi32(near, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(near), _mm256_extracti128_si256(near, 1));
}
static inline void store(uint16_t* p, V v) {
  _mm_storeu_si128((__m128i*)p, narrow8(v.a));
  _mm_storeu_si128((__m128i*)(p + 8), narrow8(v.b));
}
static inline void store_n(uint16_t* p, V v, int n) {
  uint16_t part[16];
  store(part, v);
  memcpy(p, part, size_t(n < 16 ? n : 16) * 2);
}
static inline V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline V abs(V x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline V round(V x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
static inline V to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I to_int(V x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline __m256 scale2_half(__m256 x, __m256 n) {
  __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
}
static inline V scale2(V x, V n) { return {scale2_half(x.a, n.a), scale2_half(x.b, n.b)}; }
static inline V first_of(int n, V x, V y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(lanes_below(n))),
          _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(lanes_below(n - 8)))};
}
static inline V where_less(V x, V limit, V p, V q) {
  return {_mm256_blendv_ps(q.a, p.a, _mm256_cmp_ps(x.a, limit.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(q.b, p.b, _mm256_cmp_ps(x.b, limit.b, _CMP_LT_OQ))};
}

static inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline void store(int32_t* p, I v) {
  _mm256_storeu_si256((__m256i*)p, v.a);
  _mm256_storeu_si256((__m256i*)(p + 8), v.b);
}
static inline I load(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
static inline I set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline I sub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline I times_256(I x) { return {_mm256_slli_epi32(x.a, 8), _mm256_slli_epi32(x.b, 8)}; }
static inline V load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_bytes(int8_t* p, V v) {
  int32_t wide[16];
  store(wide, to_int(v));
  for (int i = 0; i < 16; ++i) p[i] = int8_t(wide[i]);
}

static inline Pairs load_pairs(const void* p) {
  const __m256i* q = (const __m256i*)p;
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
static inline Pairs set1_pair(const void* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline __m256 even8(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
static inline __m256 odd8(__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int32_t(0xffff0000)))); }
static inline V even(Pairs x) { return {even8(x.a), even8(x.b)}; }
static inline V odd(Pairs x) { return {odd8(x.a), odd8(x.b)}; }
static inline V dot(V acc, Pairs x, Pairs y) { return fma(odd(x), odd(y), fma(even(x), even(y), acc)); }
static inline void store_pairs(void* p, Pairs x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
static inline Quads load_quads(const void* p) {
  const __m256i* q = (const __m256i*)p;
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
static inline void store(uint8_t* p, Quads x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
static inline Quads set1_quad(const void* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline Quads low_nibbles(Quads x) {
  __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
static inline Quads high_nibbles(Quads x) {
  __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
static inline __m256i dot8(__m256i acc, __m256i u, __m256i s) {
  // vpmaddubsw saturates at 16 bits, so even and odd bytes are multiplied apart.
  __m256i ue = _mm256_and_si256(u, _mm256_set1_epi16(0xff)), uo = _mm256_srli_epi16(u, 8);
  __m256i se = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8), so = _mm256_srai_epi16(s, 8);
  return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(ue, se), _mm256_madd_epi16(uo, so)));
}
static inline I dot(I acc, Quads u, Quads s) { return {dot8(acc.a, u.a, s.a), dot8(acc.b, u.b, s.b)}; }
static inline Pairs load_fp8(const void* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  __m256i halves[2];
  for (int h = 0; h < 2; ++h) {
    __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(bytes + 16 * h)));
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x80)), 8);
    __m256i bits = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    __m256i normal = _mm256_add_epi16(_mm256_slli_epi16(bits, 4), _mm256_set1_epi16(120 << 7));
    // m 2^-9 for the eight subnormal codes: low and high byte of the bf16, looked up by m
    const __m256i low = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, char(0x80), char(0xc0), 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i top = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
    __m256i index = _mm256_or_si256(bits, _mm256_set1_epi16(int16_t(0xff00)));  // high byte of the lookup: zero
    __m256i small = _mm256_or_si256(_mm256_shuffle_epi8(low, index), _mm256_slli_epi16(_mm256_shuffle_epi8(top, index), 8));
    __m256i is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), bits);
    __m256i out = _mm256_blendv_epi8(normal, small, is_small);
    out = _mm256_blendv_epi8(out, _mm256_set1_epi16(0x7fc0), _mm256_cmpeq_epi16(bits, _mm256_set1_epi16(0x7f)));
    halves[h] = _mm256_or_si256(out, sign);
  }
  return {halves[0], halves[1]};
}

#endif

static inline int64_t size_of(fulmen::Dtype dtype) { return dtype == fulmen::kFloat32 ? 4 : 2; }

// What a row of either dtype holds, as float32, and back.
static inline V read(const void* p, int64_t i, int n, fulmen::Dtype dtype) {
  return dtype == fulmen::kFloat32 ? load_n((const float*)p + i, n) : load_n((const uint16_t*)p + i, n);
}
static inline void write(void* p, int64_t i, int n, fulmen::Dtype dtype, V v) {
  if (dtype == fulmen::kFloat32) store_n((float*)p + i, v, n);
  else store_n((uint16_t*)p + i, v, n);
}

// rows[i] lane j <-> rows[j] lane i
#ifdef FULMEN_AVX512
static inline void transpose(V (&rows)[16]) {
  __m512 a[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i].x, rows[i + 1].x));
    const __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i].x, rows[i + 1].x));
    const __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2].x, rows[i + 3].x));
    const __m512d high2 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2].x, rows[i + 3].x));
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
  }
  // a[4 g + i] holds, in quarter q, lane 4 q + i of rows 4 g to 4 g + 3.
  for (int i = 0; i < 4; ++i) {
    const __m512 even01 = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88), odd01 = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88), odd23 = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
    rows[i] = {_mm512_shuffle_f32x4(even01, even23, 0x88)};
    rows[4 + i] = {_mm512_shuffle_f32x4(odd01, odd23, 0x88)};
    rows[8 + i] = {_mm512_shuffle_f32x4(even01, even23, 0xdd)};
    rows[12 + i] = {_mm512_shuffle_f32x4(odd01, odd23, 0xdd)};
  }
}
#else
static inline void transpose8(__m256 (&rows)[8]) {
  __m256 a[8];
  for (int i = 0; i < 8; i += 4) {
    const __m256d low = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
    const __m256d high = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    const __m256d low2 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m256d high2 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i + 2], rows[i + 3]));
    a[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2));
    a[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2));
    a[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2));
    a[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2));
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(a[i], a[4 + i], 0x20);
    rows[4 + i] = _mm256_permute2f128_ps(a[i], a[4 + i], 0x31);
  }
}
static inline void transpose(V (&rows)[16]) {
  __m256 corners[2][2][8];  // [upper rows or lower][left lanes or right]
  for (int i = 0; i < 16; ++i) {
    corners[i / 8][0][i % 8] = rows[i].a;
    corners[i / 8][1][i % 8] = rows[i].b;
  }
  for (auto& half : corners)
    for (auto& corner : half) transpose8(corner);
  for (int i = 0; i < 16; ++i) rows[i] = {corners[0][i / 8][i % 8], corners[1][i / 8][i % 8]};
}
#endif

// Sums and maxima of the lanes, always in the same tree.
static inline float sum(V v) {
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
}
static inline float largest(V v) {
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] = x[i + width] > x[i] ? x[i + width] : x[i];
  return x[0];
}

// The same in whatever order is fastest, for values whose sum is exact.
static inline float quick_sum(V v) {
#ifdef FULMEN_AVX512
  return _mm512_reduce_add_ps(v.x);
#else
  __m256 eight = _mm256_add_ps(v.a, v.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
}
static inline float quick_largest(V v) {
#ifdef FULMEN_AVX512
  return _mm512_reduce_max_ps(v.x);
#else
  __m256 eight = _mm256_max_ps(v.a, v.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#endif
}

// e^x to about one unit in the last place (Cephes' polynomial); 0 below -87.3, NaN stays NaN.
static inline V exp(V x) {
  V clipped = max(set1(-87.3365447504019f), min(set1(88.3762626647949f), x));  // both return the second operand for NaN
  V n = round(mul(clipped, set1(1.44269504088896341f)));
  V r = fma(n, set1(-0.693359375f), clipped);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  V y = add(fma(mul(r, r), p, r), set1(1.0f));
  return where_less(x, set1(-87.3365447504019f), zero(), scale2(y, n));
}

static inline V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

}  // namespace ISA
