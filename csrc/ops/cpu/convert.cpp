#include "ops/cpu/convert.h"

#include "ops/cpu/lanes.h"

namespace codedgrad::ops {
namespace {

// How many elements they have done.
#if defined(CODEDGRAD_LANES)
template <typename T>
CODEDGRAD_LANES std::size_t by_lanes(const T* in, float* out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, load_lanes(in + i));
  return i;
}
template <typename T>
CODEDGRAD_LANES std::size_t by_lanes(const float* in, T* out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) store_lanes(_mm256_loadu_ps(in + i), out + i);
  return i;
}
#else
bool has_lanes() { return false; }
template <typename From, typename To>
std::size_t by_lanes(const From*, To*, std::size_t) {
  return 0;
}
#endif

template <typename T>
void up(const T* in, float* out, std::size_t n) {
  std::size_t i = has_lanes() ? by_lanes(in, out, n) : 0;
  for (; i < n; ++i) out[i] = widen(in[i]);
}

template <typename T>
void down(const float* in, T* out, std::size_t n) {
  std::size_t i = has_lanes() ? by_lanes(in, out, n) : 0;
  for (; i < n; ++i) out[i] = narrow<T>(in[i]);
}

}  // namespace

void convert(const BFloat16* in, float* out, std::size_t n) { up(in, out, n); }
void convert(const Float16* in, float* out, std::size_t n) { up(in, out, n); }
void convert(const float* in, BFloat16* out, std::size_t n) { down(in, out, n); }
void convert(const float* in, Float16* out, std::size_t n) { down(in, out, n); }

}  // namespace codedgrad::ops
