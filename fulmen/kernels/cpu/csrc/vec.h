// Sixteen float32 lanes and the operations of the kernels on them, on AVX2 or AVX-512.
//
// Every kernel is written once on these types and compiled once for each instruction set, in a
// namespace of its own (ISA). Nothing here may come from the standard library: an inline function
// that the linker shares between sets would carry instructions the older machine lacks.
#pragma once

#include "kernels.h"
#include "lanes.h"

#ifdef FULMEN_AVX512
#include "vec_avx512.h"
#else
#include "vec_avx2.h"
#endif

namespace ISA {

static inline int64_t size_of(fulmen::Dtype dtype) { return dtype == fulmen::kFloat32 ? 4 : 2; }

// Values of a row of either dtype as float32, and back.
static inline V read(const void* p, int64_t i, int n, fulmen::Dtype dtype) {
  return dtype == fulmen::kFloat32 ? load_n((const float*)p + i, n)
                                   : load_n((const uint16_t*)p + i, n);
}
static inline void write(void* p, int64_t i, int n, fulmen::Dtype dtype, V v) {
  if (dtype == fulmen::kFloat32)
    store_n((float*)p + i, v, n);
  else
    store_n((uint16_t*)p + i, v, n);
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
    const __m512 even01 = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88),
                 odd01 = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88),
                 odd23 = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
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

// Sums and maxima in the fastest order, for values whose sum is exact.
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
  V clipped = max(set1(-87.3365447504019f),
                  min(set1(88.3762626647949f), x));  // both return the second operand for NaN
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
