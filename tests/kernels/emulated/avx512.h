// AVX-512 out of AVX2: the kernels of every instruction set, on a machine that has only AVX2.
//
// Included before the kernels' sources. Most of it is SIMDe (Debian's libsimde-dev); what that
// lacks stands here, lane by lane. Values are those of the instructions, but for vdpbf16ps, whose
// own rounding is replaced by two fused multiply-adds.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <simde/x86/avx512.h>

namespace emulated {

using W = simde__m512i;
using F = simde__m512;

template <class To, class From>
static inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a view of other size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int kCount>
struct Lanes {
  T at[kCount];
};

// out[i] = f(in[i])
template <class Out, class To, class In, int kCount, class From, class Function>
static inline Out each(const From& from, Function f) {
  const auto in = as<Lanes<In, kCount>>(from);
  Lanes<To, kCount> out;
  for (int i = 0; i < kCount; ++i) out.at[i] = To(f(in.at[i]));
  return as<Out>(out);
}

template <class T>
static T same(T x) {
  return x;
}

static inline float wide(uint32_t bf16) { return as<float>(bf16 << 16); }

static inline int32_t to_int(float x) {
  const bool fits = x >= -2147483648.0f && x < 2147483648.0f;
  return fits ? int32_t(nearbyintf(x)) : INT32_MIN;
}

static inline uint16_t to_bf16(uint32_t x) {
  if ((x & 0x7fffffff) > 0x7f800000) return uint16_t(x >> 16 | 0x40);
  return uint16_t((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}

static inline F cvtepi32_ps(W x) { return each<F, float, int32_t, 16>(x, same<int32_t>); }
static inline W cvtps_epi32(F x) { return each<W, int32_t, float, 16>(x, to_int); }
static inline W cvtepi8_epi32(__m128i x) { return each<W, int32_t, int8_t, 16>(x, same<int8_t>); }
static inline W cvtepu16_epi32(__m256i x) {
  return each<W, uint32_t, uint16_t, 16>(x, same<uint16_t>);
}
static inline W cvtepu8_epi16(__m256i x) {
  return each<W, uint16_t, uint8_t, 32>(x, same<uint8_t>);
}
static inline __m256i cvtepi32_epi16(W x) {
  return each<__m256i, uint16_t, uint32_t, 16>(x, same<uint32_t>);
}
static inline __m128i cvtepi32_epi8(W x) {
  return each<__m128i, uint8_t, uint32_t, 16>(x, same<uint32_t>);
}
static inline __m256i cvtneps_pbh(F x) { return each<__m256i, uint16_t, uint32_t, 16>(x, to_bf16); }
static inline W srai_epi32(W x, int n) {
  return each<W, int32_t, int32_t, 16>(x, [n](int32_t v) { return v >> n; });
}
static inline F cvtph_ps(__m256i x) {
  struct {
    __m256 low, high;
  } both{_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
         _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  return as<F>(both);
}

template <class Function>
static inline uint32_t mask_of(W x, W y, Function f) {
  const auto a = as<Lanes<uint16_t, 32>>(x), b = as<Lanes<uint16_t, 32>>(y);
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= uint32_t(f(a.at[i], b.at[i])) << i;
  return mask;
}
static inline uint32_t cmpeq_epi16_mask(W x, W y) {
  return mask_of(x, y, [](uint16_t a, uint16_t b) { return a == b; });
}
static inline uint32_t cmplt_epu16_mask(W x, W y) {
  return mask_of(x, y, [](uint16_t a, uint16_t b) { return a < b; });
}

template <class Out, class T>
static inline Out load_masked(uint16_t mask, const void* from) {
  Lanes<T, 16> out{};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) memcpy(&out.at[i], (const T*)from + i, sizeof(T));
  return as<Out>(out);
}
template <class T, class In>
static inline void store_masked(void* to, uint16_t mask, In x) {
  const auto in = as<Lanes<T, 16>>(x);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) memcpy((T*)to + i, &in.at[i], sizeof(T));
}
static inline F maskz_loadu_ps(uint16_t m, const void* p) { return load_masked<F, float>(m, p); }
static inline void mask_storeu_ps(void* p, uint16_t m, F x) { store_masked<float>(p, m, x); }
static inline __m256i maskz_loadu_epi16(uint16_t m, const void* p) {
  return load_masked<__m256i, uint16_t>(m, p);
}
static inline void mask_storeu_epi16(void* p, uint16_t m, __m256i x) {
  store_masked<uint16_t>(p, m, x);
}

// Halves onto each other, as the compilers do it.
template <class Function>
static inline float reduce(F x, Function f) {
  auto lanes = as<Lanes<float, 16>>(x);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes.at[i] = f(lanes.at[i], lanes.at[i + half]);
  return lanes.at[0];
}
static inline float reduce_add_ps(F x) {
  return reduce(x, [](float a, float b) { return a + b; });
}
static inline float reduce_max_ps(F x) {
  return reduce(x, [](float a, float b) { return a > b ? a : b; });
}

static inline W dpbusd_epi32(W sum, W x, W y) {
  const auto u = as<Lanes<uint8_t, 64>>(x);
  const auto s = as<Lanes<int8_t, 64>>(y);
  auto out = as<Lanes<int32_t, 16>>(sum);
  for (int i = 0; i < 64; ++i) out.at[i / 4] += int32_t(u.at[i]) * s.at[i];
  return as<W>(out);
}
static inline F dpbf16_ps(F sum, W x, W y) {
  const auto a = as<Lanes<uint32_t, 16>>(x), b = as<Lanes<uint32_t, 16>>(y);
  auto out = as<Lanes<float, 16>>(sum);
  for (int i = 0; i < 16; ++i) {
    const float even = fmaf(wide(a.at[i] & 0xffff), wide(b.at[i] & 0xffff), out.at[i]);
    out.at[i] = fmaf(wide(a.at[i] >> 16), wide(b.at[i] >> 16), even);
  }
  return as<F>(out);
}

}  // namespace emulated

#define __m512 simde__m512
#define __m512i simde__m512i
#define __m512bh simde__m512i
#define __mmask16 simde__mmask16
#define __mmask32 simde__mmask32
#define _mm256_mask_storeu_epi16 emulated::mask_storeu_epi16
#define _mm256_maskz_loadu_epi16 emulated::maskz_loadu_epi16
#define _mm512_abs_ps simde_mm512_abs_ps
#define _mm512_add_epi16 simde_mm512_add_epi16
#define _mm512_add_epi32 simde_mm512_add_epi32
#define _mm512_add_ps simde_mm512_add_ps
#define _mm512_and_si512 simde_mm512_and_si512
#define _mm512_broadcast_i32x4 simde_mm512_broadcast_i32x4
#define _mm512_castpd_ps simde_mm512_castpd_ps
#define _mm512_castps_pd simde_mm512_castps_pd
#define _mm512_castps_si512 simde_mm512_castps_si512
#define _mm512_castsi128_si512 simde_mm512_castsi128_si512
#define _mm512_castsi512_ps simde_mm512_castsi512_ps
#define _mm512_castsi512_si256 simde_mm512_castsi512_si256
#define _mm512_cmp_ps_mask simde_mm512_cmp_ps_mask
#define _mm512_cmpeq_epi16_mask emulated::cmpeq_epi16_mask
#define _mm512_cmplt_epu16_mask emulated::cmplt_epu16_mask
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepu8_epi16 emulated::cvtepu8_epi16
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_div_ps simde_mm512_div_ps
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#define _mm512_fmadd_ps simde_mm512_fmadd_ps
#define _mm512_loadu_ps simde_mm512_loadu_ps
#define _mm512_loadu_si512 simde_mm512_loadu_si512
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#define _mm512_maddubs_epi16 simde_mm512_maddubs_epi16
#define _mm512_mask_add_epi32 simde_mm512_mask_add_epi32
#define _mm512_mask_blend_ps simde_mm512_mask_blend_ps
#define _mm512_mask_mov_epi16 simde_mm512_mask_mov_epi16
#define _mm512_mask_or_epi32 simde_mm512_mask_or_epi32
#define _mm512_mask_permutexvar_epi16 simde_mm512_mask_permutexvar_epi16
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_max_ps simde_mm512_max_ps
#define _mm512_min_ps simde_mm512_min_ps
#define _mm512_mul_ps simde_mm512_mul_ps
#define _mm512_or_si512 simde_mm512_or_si512
#define _mm512_permutexvar_epi32 simde_mm512_permutexvar_epi32
#define _mm512_permutexvar_ps simde_mm512_permutexvar_ps
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_roundscale_ps simde_mm512_roundscale_ps
#define _mm512_set1_epi16 simde_mm512_set1_epi16
#define _mm512_set1_epi32 simde_mm512_set1_epi32
#define _mm512_set1_epi8 simde_mm512_set1_epi8
#define _mm512_set1_ps simde_mm512_set1_ps
#define _mm512_setr_epi32 simde_mm512_setr_epi32
#define _mm512_setzero_ps simde_mm512_setzero_ps
#define _mm512_setzero_si512 simde_mm512_setzero_si512
#define _mm512_shuffle_epi8 simde_mm512_shuffle_epi8
#define _mm512_shuffle_f32x4 simde_mm512_shuffle_f32x4
#define _mm512_slli_epi16 simde_mm512_slli_epi16
#define _mm512_slli_epi32 simde_mm512_slli_epi32
#define _mm512_srai_epi16 simde_mm512_srai_epi16
#define _mm512_srai_epi32 emulated::srai_epi32
#define _mm512_srli_epi16 simde_mm512_srli_epi16
#define _mm512_srli_epi32 simde_mm512_srli_epi32
#define _mm512_storeu_ps simde_mm512_storeu_ps
#define _mm512_storeu_si512 simde_mm512_storeu_si512
#define _mm512_sub_epi32 simde_mm512_sub_epi32
#define _mm512_sub_ps simde_mm512_sub_ps
#define _mm512_unpackhi_pd simde_mm512_unpackhi_pd
#define _mm512_unpackhi_ps simde_mm512_unpackhi_ps
#define _mm512_unpacklo_pd simde_mm512_unpacklo_pd
#define _mm512_unpacklo_ps simde_mm512_unpacklo_ps
