// Eight or sixteen elements of any type as one register of fp32, where the machine has
// them: the same values as `widen` and `narrow` of half.h give one by one.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include "ops/cpu/half.h"

#define CODEDGRAD_LANES __attribute__((target("avx2,f16c")))
#define CODEDGRAD_LANES16 __attribute__((target("avx512f")))

namespace codedgrad::ops {

inline bool has_lanes() {
  static const bool has =
      __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("f16c") != 0;
  return has;
}

inline bool has_lanes16() {
  static const bool has = __builtin_cpu_supports("avx512f") != 0;
  return has;
}

CODEDGRAD_LANES inline __m256 load_lanes(const BFloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
CODEDGRAD_LANES inline __m256 load_lanes(const Float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

CODEDGRAD_LANES inline void store_lanes(__m256 value, BFloat16* to) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd =
      _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  // A NaN must not be rounded up to Inf: its quiet bit is set instead.
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_blendv_epi8(_mm256_add_epi32(bits, up), quiet, nan), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded),
                                          _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}
CODEDGRAD_LANES inline void store_lanes(__m256 value, float* to) {
  _mm256_storeu_ps(to, value);
}
CODEDGRAD_LANES inline void store_lanes(__m256 value, Float16* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

// All lanes through a mask: without one GCC 12 warns of what it leaves undefined.
constexpr __mmask16 kAll = 0xffff;

CODEDGRAD_LANES16 inline __m512 load_lanes16(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(
      _mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, bits), 16));
}
CODEDGRAD_LANES16 inline __m512 load_lanes16(const Float16* from) {
  return _mm512_maskz_cvtph_ps(
      kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

CODEDGRAD_LANES16 inline void store_lanes16(__m512 value, BFloat16* to) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd =
      _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, up), nan, quiet);
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(to),
      _mm512_maskz_cvtepi32_epi16(kAll, _mm512_maskz_srli_epi32(kAll, rounded, 16)));
}
CODEDGRAD_LANES16 inline void store_lanes16(__m512 value, Float16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(kAll, value, _MM_FROUND_TO_NEAREST_INT));
}
CODEDGRAD_LANES16 inline void store_lanes16(__m512 value, float* to) {
  _mm512_storeu_ps(to, value);
}

}  // namespace codedgrad::ops

#endif
