#include "ops/cpu/combine.h"

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
template <int K, typename T>
CODEDGRAD_LANES std::size_t by_lanes(const float* from, const T* const* in,
                                     const float* w, float* to, std::size_t n) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 sum = _mm256_mul_ps(_mm256_set1_ps(w[0]), load_lanes(in[0] + i));
    if (from != nullptr) sum = _mm256_add_ps(_mm256_loadu_ps(from + i), sum);
    for (int j = 1; j < K; ++j) {
      const __m256 term = _mm256_mul_ps(_mm256_set1_ps(w[j]), load_lanes(in[j] + i));
      sum = _mm256_add_ps(sum, term);
    }
    _mm256_storeu_ps(to + i, sum);
  }
  return i;
}
#else
bool has_lanes() { return false; }
template <int K, typename T>
std::size_t by_lanes(const float*, const T* const*, const float*, float*, std::size_t) {
  return 0;
}
#endif

template <typename T>
void half(const float* from, const T* const* in, const float* w, int k, float* to,
          std::size_t n) {
  std::size_t done = 0;
  if (has_lanes()) {
    done = k == 1   ? by_lanes<1>(from, in, w, to, n)
           : k == 2 ? by_lanes<2>(from, in, w, to, n)
           : k == 3 ? by_lanes<3>(from, in, w, to, n)
                    : by_lanes<4>(from, in, w, to, n);
  }
  any_k(from, in, w, k, to, done, n);
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

}  // namespace codedgrad::ops
