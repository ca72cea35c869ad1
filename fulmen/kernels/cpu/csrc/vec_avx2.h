// The types of vec.h in two registers of AVX2, and the operations of vec_avx512.h on them.
#pragma once

#include "lanes.h"

namespace ISA {

struct V {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
struct Pairs {
  __m256i a, b;
};
struct Quads {
  __m256i a, b;
};

static inline __m256i lanes_below(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// Whole vectors take the short way: stores through a mask are slow on many machines.
static inline V load_n(const float* p, int n) {
  if (n >= kLanes) return load(p);
  return {_mm256_maskload_ps(p, lanes_below(n)),
          n > 8 ? _mm256_maskload_ps(p + 8, lanes_below(n - 8)) : _mm256_setzero_ps()};
}
static inline void store(float* p, V v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
static inline void store_n(float* p, V v, int n) {
  if (n >= kLanes) return store(p, v);
  _mm256_maskstore_ps(p, lanes_below(n), v.a);
  if (n > 8) _mm256_maskstore_ps(p + 8, lanes_below(n - 8), v.b);
}
static inline __m256 widen8(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline V load(const uint16_t* p) {
  return {widen8(_mm_loadu_si128((const __m128i*)p)),
          widen8(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline V load_n(const uint16_t* p, int n) {
  if (n >= kLanes) return load(p);
  uint16_t part[16] = {0};
  memcpy(part, p, size_t(n) * 2);
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
  if (n >= kLanes) return store(p, v);
  uint16_t part[16];
  store(part, v);
  memcpy(p, part, size_t(n) * 2);
}
static inline V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline V fma(V x, V y, V z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
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
  __m256i e =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
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
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_bytes(int8_t* p, V v) {
  __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                _mm256_extracti128_si256(words, 1)));
}
static inline void store_words8(void* even, void* odd, __m256i x) {
  const __m256i halves = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m256i sorted = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x, halves),
                                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 2, 2, 2));
  const __m128i both = _mm256_castsi256_si128(sorted);
  _mm_storel_epi64((__m128i*)even, both);
  _mm_storel_epi64((__m128i*)odd, _mm_unpackhi_epi64(both, both));
}
static inline void store_words(int8_t* even, int8_t* odd, V v) {
  store_words8(even, odd, _mm256_cvtps_epi32(v.a));
  store_words8(even + 8, odd + 8, _mm256_cvtps_epi32(v.b));
}
static inline I load_bytes(const void* p) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
static inline I over_4(I x) { return {_mm256_srai_epi32(x.a, 2), _mm256_srai_epi32(x.b, 2)}; }
static inline I modulo_4(I x) {
  const __m256i three = _mm256_set1_epi32(3);
  return {_mm256_and_si256(x.a, three), _mm256_and_si256(x.b, three)};
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
static inline __m256 odd8(__m256i x) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int32_t(0xffff0000))));
}
static inline V even(Pairs x) { return {even8(x.a), even8(x.b)}; }
static inline V odd(Pairs x) { return {odd8(x.a), odd8(x.b)}; }
static inline V dot(V acc, Pairs x, Pairs y) {
  return fma(odd(x), odd(y), fma(even(x), even(y), acc));
}
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
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
static inline __m256i dot8(__m256i acc, __m256i u, __m256i s) {
  // vpmaddubsw saturates at 16 bits, so even and odd bytes are multiplied apart.
  __m256i ue = _mm256_and_si256(u, _mm256_set1_epi16(0xff)), uo = _mm256_srli_epi16(u, 8);
  __m256i se = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8), so = _mm256_srai_epi16(s, 8);
  return _mm256_add_epi32(acc,
                          _mm256_add_epi32(_mm256_madd_epi16(ue, se), _mm256_madd_epi16(uo, so)));
}
static inline I dot(I acc, Quads u, Quads s) {
  return {dot8(acc.a, u.a, s.a), dot8(acc.b, u.b, s.b)};
}
static inline __m256i dot8_pairs(__m256i acc, __m256i u, __m256i s, __m256i v, __m256i t) {
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(u, s), _mm256_maddubs_epi16(v, t));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline I dot_pairs(I acc, Quads u, Quads s, Quads v, Quads t) {
  return {dot8_pairs(acc.a, u.a, s.a, v.a, t.a), dot8_pairs(acc.b, u.b, s.b, v.b, t.b)};
}
static inline __m256i dot8_words(__m256i acc, __m256i u, __m256i even, __m256i odd) {
  const __m256i ue = _mm256_and_si256(u, _mm256_set1_epi16(0xff)), uo = _mm256_srli_epi16(u, 8);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(ue, even));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(uo, odd));
}
static inline I dot_words(I acc, Quads u, Quads even, Quads odd) {
  return {dot8_words(acc.a, u.a, even.a, odd.a), dot8_words(acc.b, u.b, even.b, odd.b)};
}
static inline Quads lookup(const uint8_t* table, Quads nibbles) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(t, nibbles.a), _mm256_shuffle_epi8(t, nibbles.b)};
}
static inline Pairs load_fp8(const void* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  __m256i halves[2];
  for (int h = 0; h < 2; ++h) {
    __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(bytes + 16 * h)));
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x80)), 8);
    __m256i bits = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    __m256i normal = _mm256_add_epi16(_mm256_slli_epi16(bits, 4), _mm256_set1_epi16(120 << 7));
    // m 2^-9 for the eight subnormal codes: low and high byte of the bf16, looked up by m
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, char(0x80), char(0xc0), 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i top = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
    __m256i index =
        _mm256_or_si256(bits, _mm256_set1_epi16(int16_t(0xff00)));  // high byte of the lookup: zero
    __m256i small = _mm256_or_si256(_mm256_shuffle_epi8(low, index),
                                    _mm256_slli_epi16(_mm256_shuffle_epi8(top, index), 8));
    __m256i is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), bits);
    __m256i out = _mm256_blendv_epi8(normal, small, is_small);
    out = _mm256_blendv_epi8(out, _mm256_set1_epi16(0x7fc0),
                             _mm256_cmpeq_epi16(bits, _mm256_set1_epi16(0x7f)));
    halves[h] = _mm256_or_si256(out, sign);
  }
  return {halves[0], halves[1]};
}
struct Table {
  __m256 low, high;
};
static inline Table load_table(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline V pick_low(const Table& table, I i) {
  return {_mm256_permutevar8x32_ps(table.low, i.a), _mm256_permutevar8x32_ps(table.low, i.b)};
}
static inline V pick_high(const Table& table, I i) {
  return {_mm256_permutevar8x32_ps(table.high, i.a), _mm256_permutevar8x32_ps(table.high, i.b)};
}
static inline __m256 pick8(const Table& table, __m256i i) {
  // Bit 3 of the number, as a sign, chooses the half.
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, i),
                          _mm256_permutevar8x32_ps(table.high, i),
                          _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
static inline V pick(const Table& table, I i) { return {pick8(table, i.a), pick8(table, i.b)}; }
static inline __m256i child_of8(__m256i n, __m256 x, __m256 limit) {
  const __m256i reached = _mm256_castps_si256(_mm256_cmp_ps(x, limit, _CMP_GE_OQ));  // -1 or 0
  return _mm256_sub_epi32(_mm256_add_epi32(n, n), reached);
}
static inline I child_of(I n, V x, V limit) {
  return {child_of8(n.a, x.a, limit.a), child_of8(n.b, x.b, limit.b)};
}

}  // namespace ISA
