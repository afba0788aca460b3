#include "ops/cpu/encode.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/cpu/clones.h"
#include "ops/cpu/round.h"

namespace codedgrad::ops {
namespace {

// Without sign the bits of a float order as its value does, NaN last.
CODEDGRAD_CLONES std::uint32_t largest(const float* values, std::size_t n) {
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    most = std::max(most, bits & 0x7fffffffu);
  }
  return most;
}

CODEDGRAD_CLONES std::uint64_t largest(const double* values, std::size_t n) {
  std::uint64_t most = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint64_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    most = std::max(most, bits & ~(std::uint64_t{1} << 63));
  }
  return most;
}

bool finite(const float* v, std::size_t n) { return largest(v, n) < 0x7f800000u; }
bool finite(const double* v, std::size_t n) {
  return largest(v, n) < std::uint64_t{0x7ff} << 52;
}

CODEDGRAD_CLONES void scale(const float* x, float w, float* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = w * x[i];
}
CODEDGRAD_CLONES void scale(const double* x, double w, double* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = w * x[i];
}
CODEDGRAD_CLONES void add(const float* x, float* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] += x[i];
}
CODEDGRAD_CLONES void add(const double* x, double* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] += x[i];
}

}  // namespace

template <typename T>
bool encode(const std::vector<Piece<T>>& leaf, T weight,
            const std::vector<const T*>& sums, T* out, Wire wire) {
  bool good = true;
  std::size_t at = 0;  // elements written
  for (const Piece<T>& piece : leaf) {
    for (std::size_t begin = 0; begin < piece.count; begin += kBlock) {
      const std::size_t n = std::min(kBlock, piece.count - begin);
      T* to = out + at + begin;
      if (piece.data != nullptr) {
        scale(piece.data + begin, weight, to, n);
        round_to(wire, to, n);
        good = finite(to, n) && good;
      } else {
        std::fill(to, to + n, T{0});
      }
      for (std::size_t s = sums.size(); s-- > 0;) {
        add(sums[s] + at + begin, to, n);
        if (wire == Wire::kAsIs) continue;
        round_to(wire, to, n);
        good = finite(to, n) && good;
      }
    }
    at += piece.count;
  }
  return good;
}

template <typename From, typename T>
void change(const From* now, const From* before, T* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = now[i] == before[i] ? T{0} : static_cast<T>(now[i] - before[i]);
  }
}

template void change(const float*, const float*, float*, std::size_t);
template void change(const float*, const float*, double*, std::size_t);
template void change(const double*, const double*, double*, std::size_t);
template void change(const std::int64_t*, const std::int64_t*, float*, std::size_t);
template void change(const std::int64_t*, const std::int64_t*, double*, std::size_t);

template bool encode(const std::vector<Piece<float>>&, float,
                     const std::vector<const float*>&, float*, Wire);
template bool encode(const std::vector<Piece<double>>&, double,
                     const std::vector<const double*>&, double*, Wire);

}  // namespace codedgrad::ops
