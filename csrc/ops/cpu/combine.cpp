#include "ops/cpu/combine.h"

#include <algorithm>
#include <type_traits>

#include "ops/cpu/clones.h"
#include "ops/cpu/lanes.h"

#define CODEDGRAD_INLINE inline __attribute__((always_inline))

namespace codedgrad::ops {
namespace {

CODEDGRAD_INLINE float widen(float value) { return value; }
CODEDGRAD_INLINE double widen(double value) { return value; }

template <int K, typename T, typename Wide>
CODEDGRAD_INLINE void all(const Wide* from, const T* const* in, const Wide* w, Wide* to,
                          std::size_t begin, std::size_t end) {
  const T *a = in[0], *b = in[K > 1], *c = in[K > 2 ? 2 : 0], *d = in[K > 3 ? 3 : 0];
  const Wide wa = w[0], wb = w[K > 1], wc = w[K > 2 ? 2 : 0], wd = w[K > 3 ? 3 : 0];
  auto rest = [=](Wide sum, std::size_t i) __attribute__((always_inline)) {
    if constexpr (K > 1) sum += wb * widen(b[i]);
    if constexpr (K > 2) sum += wc * widen(c[i]);
    if constexpr (K > 3) sum += wd * widen(d[i]);
    return sum;
  };
  if (from == nullptr) {
#pragma GCC ivdep
    for (std::size_t i = begin; i < end; ++i) to[i] = rest(wa * widen(a[i]), i);
  } else {
#pragma GCC ivdep
    for (std::size_t i = begin; i < end; ++i) {
      to[i] = rest(from[i] + wa * widen(a[i]), i);
    }
  }
}

template <typename T, typename Wide>
CODEDGRAD_INLINE void any_k(const Wide* from, const T* const* in, const Wide* w, int k,
                            Wide* to, std::size_t begin, std::size_t end) {
  switch (k) {
    case 1:
      return all<1>(from, in, w, to, begin, end);
    case 2:
      return all<2>(from, in, w, to, begin, end);
    case 3:
      return all<3>(from, in, w, to, begin, end);
    default:
      return all<4>(from, in, w, to, begin, end);
  }
}

// How many elements they have done.
#if defined(CODEDGRAD_LANES)
template <int K, typename T, typename Out>
CODEDGRAD_LANES std::size_t by_lanes(const float* from, const T* const* in,
                                     const float* w, Out* to, std::size_t i,
                                     std::size_t n) {
  for (; i + 8 <= n; i += 8) {
    __m256 sum = _mm256_mul_ps(_mm256_set1_ps(w[0]), load_lanes(in[0] + i));
    if (from != nullptr) sum = _mm256_add_ps(_mm256_loadu_ps(from + i), sum);
    for (int j = 1; j < K; ++j) {
      const __m256 term = _mm256_mul_ps(_mm256_set1_ps(w[j]), load_lanes(in[j] + i));
      sum = _mm256_add_ps(sum, term);
    }
    store_lanes(sum, to + i);
  }
  return i;
}
template <int K, typename T, typename Out>
CODEDGRAD_LANES16 std::size_t by_lanes16(const float* from, const T* const* in,
                                         const float* w, Out* to, std::size_t n) {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m512 sum = _mm512_mul_ps(_mm512_set1_ps(w[0]), load_lanes16(in[0] + i));
    if (from != nullptr) sum = _mm512_add_ps(_mm512_loadu_ps(from + i), sum);
    for (int j = 1; j < K; ++j) {
      const __m512 term = _mm512_mul_ps(_mm512_set1_ps(w[j]), load_lanes16(in[j] + i));
      sum = _mm512_add_ps(sum, term);
    }
    store_lanes16(sum, to + i);
  }
  return i;
}
template <int K, typename T, typename Out>
std::size_t most(const float* from, const T* const* in, const float* w, Out* to,
                 std::size_t n) {
  const std::size_t i = has_lanes16() ? by_lanes16<K>(from, in, w, to, n) : 0;
  return has_lanes() ? by_lanes<K>(from, in, w, to, i, n) : i;
}
#else
template <int K, typename T, typename Out>
std::size_t most(const float*, const T* const*, const float*, Out*, std::size_t) {
  return 0;
}
#endif

template <typename T, typename Out>
void half(const float* from, const T* const* in, const float* w, int k, Out* to,
          std::size_t n) {
  const std::size_t done = k == 1   ? most<1>(from, in, w, to, n)
                           : k == 2 ? most<2>(from, in, w, to, n)
                           : k == 3 ? most<3>(from, in, w, to, n)
                                    : most<4>(from, in, w, to, n);
  if constexpr (std::is_same_v<Out, float>) {
    any_k(from, in, w, k, to, done, n);
  } else {
    constexpr std::size_t kPiece = 16;
    float sum[kPiece];
    const T* rest[kTogether];
    for (std::size_t i = done; i < n; i += kPiece) {
      const std::size_t some = std::min(kPiece, n - i);
      for (int j = 0; j < k; ++j) rest[j] = in[j] + i;
      any_k(from == nullptr ? nullptr : from + i, rest, w, k, sum, 0, some);
      for (std::size_t e = 0; e < some; ++e) to[i + e] = narrow<Out>(sum[e]);
    }
  }
}

CODEDGRAD_CLONES void full(const float* from, const float* const* in, const float* w,
                           int k, float* to, std::size_t n) {
  any_k(from, in, w, k, to, 0, n);
}
CODEDGRAD_CLONES void full(const double* from, const double* const* in, const double* w,
                           int k, double* to, std::size_t n) {
  any_k(from, in, w, k, to, 0, n);
}

}  // namespace

void combine(const float* from, const float* const* in, const float* w, int k,
             float* to, std::size_t n) {
  full(from, in, w, k, to, n);
}
void combine(const double* from, const double* const* in, const double* w, int k,
             double* to, std::size_t n) {
  full(from, in, w, k, to, n);
}
void combine(const float* from, const BFloat16* const* in, const float* w, int k,
             float* to, std::size_t n) {
  half(from, in, w, k, to, n);
}
void combine(const float* from, const Float16* const* in, const float* w, int k,
             float* to, std::size_t n) {
  half(from, in, w, k, to, n);
}
void combine(const float* from, const BFloat16* const* in, const float* w, int k,
             BFloat16* to, std::size_t n) {
  half(from, in, w, k, to, n);
}
void combine(const float* from, const Float16* const* in, const float* w, int k,
             Float16* to, std::size_t n) {
  half(from, in, w, k, to, n);
}

}  // namespace codedgrad::ops
