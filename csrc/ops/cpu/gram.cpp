#include "ops/cpu/gram.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ops/cpu/convert.h"
#include "ops/cpu/parallel.h"

namespace codedgrad::ops {
namespace {

constexpr std::size_t kBlock = 512;         // elements; blocks of 8 inputs fit L1
constexpr std::size_t kChunk = 64 << 10;    // elements that a thread takes at once
constexpr std::size_t kThreaded = 2 << 20;  // elements; below, threads cost too much
constexpr std::size_t kChunks = 1024;       // at most; each has a partial result
constexpr std::size_t kLine = 64;           // bytes that memory gives at once
// More inputs than the hardware foresees while their products are still being added.
constexpr std::size_t kAhead = 4;

template <typename T>
struct Vector {
  static constexpr std::size_t kLanes = 32 / sizeof(T);
  typedef T Type __attribute__((vector_size(32)));
  // As in memory: not aligned to more than an element.
  typedef T Loose __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

// The same lanes and roundings with and without registers of 32 bytes, so the same
// bits. (target_clones would split the vectors before it makes the clones.)
namespace any {
#define CODEDGRAD_TARGET
template <typename V>
void fuse(const V& a, const V& b, V* c) {
  for (std::size_t l = 0; l < sizeof(V) / sizeof(a[0]); ++l) {
    (*c)[l] = std::fma(a[l], b[l], (*c)[l]);
  }
}
template <typename V>
void add_lanes(const V& v, double* to) {
  for (std::size_t l = 0; l < sizeof(V) / sizeof(v[0]); ++l) to[l] += v[l];
}
#include "ops/cpu/gram_tile.h"
#undef CODEDGRAD_TARGET
}  // namespace any

#if defined(__x86_64__) && defined(__GNUC__)
namespace wide {
#define CODEDGRAD_TARGET __attribute__((target("avx2,fma")))
CODEDGRAD_TARGET inline void fuse(const __m256& a, const __m256& b, __m256* c) {
  *c = _mm256_fmadd_ps(a, b, *c);
}
CODEDGRAD_TARGET inline void fuse(const __m256d& a, const __m256d& b, __m256d* c) {
  *c = _mm256_fmadd_pd(a, b, *c);
}
CODEDGRAD_TARGET inline void add_lanes(const __m256d& v, double* to) {
  _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), v));
}
CODEDGRAD_TARGET inline void add_lanes(const __m256& v, double* to) {
  add_lanes(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), to);
  add_lanes(_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)), to + 4);
}
#include "ops/cpu/gram_tile.h"
#undef CODEDGRAD_TARGET
}  // namespace wide
bool has_wide() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}
#else
namespace wide = any;
bool has_wide() { return false; }
#endif

// out [k, k]: the upper triangle of the gram matrix of one chunk.
template <typename T>
void chunk(const T* const* inputs, std::size_t k, std::size_t begin, std::size_t end,
           bool is_wide, double* out) {
  using Wide = Accumulator<T>;
  constexpr bool kConvert = !std::is_same_v<T, Wide>;
  std::vector<Wide> converted(kConvert ? k * kBlock : 0);
  std::vector<const Wide*> in(k);
  constexpr std::size_t kLanes = 32 / sizeof(Wide);
  std::vector<double> lanes(k * k * kLanes);
  // A tile has a turn for every line of two inputs' blocks; for k inputs there are
  // ceil(k / 4)^2 tiles, at least k / 2 of them.
  const std::size_t quads = (k + 3) / 4;
  std::vector<const char*> ahead(!kConvert && k > kAhead ? 2 * quads * quads : 0);
  for (std::size_t at = begin; at < end; at += kBlock) {
    const std::size_t n = std::min(kBlock, end - at);
    for (std::size_t i = 0; i < k; ++i) {
      if constexpr (kConvert) {
        Wide* to = converted.data() + i * kBlock;
        convert(inputs[i] + at, to, n);
        in[i] = to;
      } else {
        in[i] = inputs[i] + at;
      }
    }
    const std::size_t next = at + kBlock < end ? at + kBlock : at;
    for (std::size_t i = 0; i < ahead.size(); ++i) {
      ahead[i] = reinterpret_cast<const char*>(inputs[i % k] + next);
    }
    const char* const* all = ahead.empty() ? nullptr : ahead.data();
    if (is_wide) {
      wide::block<Wide>(in.data(), k, n, lanes.data(), all);
    } else {
      any::block<Wide>(in.data(), k, n, lanes.data(), all);
    }
  }
  for (std::size_t pair = 0; pair < k * k; ++pair) {
    double* sum = lanes.data() + pair * kLanes;
    for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::size_t l = 0; l < half; ++l) sum[l] += sum[l + half];
    }
    out[pair] = sum[0];
  }
}

}  // namespace

template <typename T>
void gram(const std::vector<const T*>& inputs, std::size_t count, double* out,
          int threads) {
  const std::size_t k = inputs.size();
  std::size_t size = std::max(kChunk, (count + kChunks - 1) / kChunks);
  size = (size + kBlock - 1) / kBlock * kBlock;
  const std::size_t chunks = (count + size - 1) / size;
  const bool is_wide = has_wide();
  if (count * k < kThreaded) threads = 1;
  std::vector<double> partial(chunks * k * k);
  parallel_for(chunks, threads, [&](std::size_t c) {
    chunk(inputs.data(), k, c * size, std::min(count, (c + 1) * size), is_wide,
          partial.data() + c * k * k);
  });
  std::fill(out, out + k * k, 0.0);
  for (std::size_t c = 0; c < chunks; ++c) {
    for (std::size_t i = 0; i < k * k; ++i) out[i] += partial[c * k * k + i];
  }
  for (std::size_t i = 0; i < k; ++i) {
    for (std::size_t j = 0; j < i; ++j) out[i * k + j] = out[j * k + i];
  }
}

template void gram(const std::vector<const float*>&, std::size_t, double*, int);
template void gram(const std::vector<const double*>&, std::size_t, double*, int);
template void gram(const std::vector<const BFloat16*>&, std::size_t, double*, int);
template void gram(const std::vector<const Float16*>&, std::size_t, double*, int);

}  // namespace codedgrad::ops
