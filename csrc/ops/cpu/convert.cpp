#include "ops/cpu/convert.h"

#include "ops/cpu/lanes.h"

namespace codedgrad::ops {
namespace {

// How many elements they have done.
#if defined(CODEDGRAD_LANES)
template <typename T>
CODEDGRAD_LANES std::size_t by_lanes(const T* in, float* out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) store_lanes(load_lanes(in + i), out + i);
  return i;
}
template <typename T>
CODEDGRAD_LANES16 std::size_t by_lanes16(const T* in, float* out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) store_lanes16(load_lanes16(in + i), out + i);
  return i;
}
template <typename T>
CODEDGRAD_LANES std::size_t by_lanes(const float* in, T* out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) store_lanes(_mm256_loadu_ps(in + i), out + i);
  return i;
}
template <typename T>
CODEDGRAD_LANES16 std::size_t by_lanes16(const float* in, T* out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) store_lanes16(_mm512_loadu_ps(in + i), out + i);
  return i;
}

template <typename From, typename To>
std::size_t most(const From* in, To* out, std::size_t n) {
  const std::size_t i = has_lanes16() ? by_lanes16(in, out, n) : 0;
  return has_lanes() ? i + by_lanes(in + i, out + i, n - i) : i;
}
#else
template <typename From, typename To>
std::size_t most(const From*, To*, std::size_t) {
  return 0;
}
#endif

template <typename T>
void up(const T* in, float* out, std::size_t n) {
  for (std::size_t i = most(in, out, n); i < n; ++i) out[i] = widen(in[i]);
}

template <typename T>
void down(const float* in, T* out, std::size_t n) {
  for (std::size_t i = most(in, out, n); i < n; ++i) out[i] = narrow<T>(in[i]);
}

}  // namespace

void convert(const BFloat16* in, float* out, std::size_t n) { up(in, out, n); }
void convert(const Float16* in, float* out, std::size_t n) { up(in, out, n); }
void convert(const float* in, BFloat16* out, std::size_t n) { down(in, out, n); }
void convert(const float* in, Float16* out, std::size_t n) { down(in, out, n); }

}  // namespace codedgrad::ops
