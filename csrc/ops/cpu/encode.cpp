#include "ops/cpu/encode.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/cpu/clones.h"
#include "ops/cpu/past_caches.h"
#include "ops/cpu/round.h"

namespace codedgrad::ops {
namespace {

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

template <typename T>
constexpr Bits<T> kInf =
    sizeof(T) == 4 ? Bits<T>{0x7f800000u}
                   : static_cast<Bits<T>>(std::uint64_t{0x7ff} << 52);

// Without sign the bits of a float order as its value does, NaN last.
template <typename T>
inline Bits<T> magnitude(T value) {
  Bits<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & ~(Bits<T>{1} << (8 * sizeof(T) - 1));
}

constexpr std::size_t kTogether = 2;  // sums that are added in the leaf's own loop

// out = w x + sums[0] + ... + sums[k - 1]; the largest magnitude of w x.
template <int k, typename T>
inline __attribute__((always_inline)) Bits<T> leaf_loop(const T* x, T w,
                                                        const T* const* sums, T* out,
                                                        std::size_t n) {
  const T* first = k > 0 ? sums[0] : nullptr;
  const T* second = k > 1 ? sums[1] : nullptr;
  Bits<T> most = 0;
  for (std::size_t i = 0; i < n; ++i) {
    T value = w * x[i];
    most = std::max(most, magnitude(value));
    if (k > 0) value += first[i];
    if (k > 1) value += second[i];
    out[i] = value;
  }
  return most;
}

template <typename T>
inline __attribute__((always_inline)) Bits<T> leaf_of(const T* x, T w,
                                                      const T* const* sums,
                                                      std::size_t k, T* out,
                                                      std::size_t n) {
  if (k == 0) return leaf_loop<0>(x, w, sums, out, n);
  if (k == 1) return leaf_loop<1>(x, w, sums, out, n);
  return leaf_loop<2>(x, w, sums, out, n);
}

CODEDGRAD_CLONES std::uint32_t leaf(const float* x, float w, const float* const* sums,
                                    std::size_t k, float* out, std::size_t n) {
  return leaf_of(x, w, sums, k, out, n);
}
CODEDGRAD_CLONES std::uint64_t leaf(const double* x, double w,
                                    const double* const* sums, std::size_t k,
                                    double* out, std::size_t n) {
  return leaf_of(x, w, sums, k, out, n);
}
CODEDGRAD_CLONES std::uint32_t largest(const float* values, std::size_t n) {
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < n; ++i) most = std::max(most, magnitude(values[i]));
  return most;
}
CODEDGRAD_CLONES void add(const float* x, float* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] += x[i];
}
CODEDGRAD_CLONES void add(const double* x, double* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] += x[i];
}

// One block, not rounded: the leaf, then what was summed before. True: w x is finite.
template <typename T>
bool plain(const T* x, T w, const std::vector<const T*>& sums, std::size_t at, T* out,
           std::size_t n) {
  std::size_t left = sums.size();
  bool good = true;
  if (x == nullptr) {
    std::fill(out, out + n, T{0});
  } else {
    const T* next[kTogether] = {};
    std::size_t k = 0;
    while (k < kTogether && left > 0) next[k++] = sums[--left] + at;
    good = leaf(x, w, next, k, out, n) < kInf<T>;
  }
  while (left-- > 0) add(sums[left] + at, out, n);
  return good;
}

// The same with every sum rounded to the wire type.
template <typename T>
bool rounded(const T* x, T w, const std::vector<const T*>& sums, std::size_t at, T* out,
             std::size_t n, Wire wire) {
  bool good = true;
  if constexpr (std::is_same_v<T, float>) {
    const float* const none = nullptr;
    if (x != nullptr) {
      leaf(x, w, &none, 0, out, n);
      round_to(wire, out, n);
      good = largest(out, n) < kInf<float>;
    } else {
      std::fill(out, out + n, 0.0f);
    }
    for (std::size_t s = sums.size(); s-- > 0;) {
      add(sums[s] + at, out, n);
      round_to(wire, out, n);
      good = largest(out, n) < kInf<float> && good;
    }
  } else {
    round_to(wire, out, n);  // throws
  }
  return good;
}

template <typename From, typename T>
void widen_block(const From* from, T* to, std::size_t n) {
  if constexpr (std::is_same_v<T, float> && sizeof(From) == 2) {
    convert(from, to, n);
  } else if constexpr (sizeof(From) == 2) {
    for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<T>(widen(from[i]));
  } else {
    for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
  }
}

// Returns n values of a piece, from its element `at` on, as T; null: they are zeros.
// `scratch` is where values of other types are widened to.
template <typename T>
const T* values(const Piece& piece, std::size_t at, std::size_t n, T* scratch) {
  if (piece.data == 0) return nullptr;
  constexpr Type own = std::is_same_v<T, float> ? Type::kFloat32 : Type::kFloat64;
  if (piece.type() == own) return reinterpret_cast<const T*>(piece.data) + at;
  switch (piece.type()) {
    case Type::kFloat32:
      widen_block(reinterpret_cast<const float*>(piece.data) + at, scratch, n);
      break;
    case Type::kFloat64:
      widen_block(reinterpret_cast<const double*>(piece.data) + at, scratch, n);
      break;
    case Type::kBFloat16:
      widen_block(reinterpret_cast<const BFloat16*>(piece.data) + at, scratch, n);
      break;
    case Type::kFloat16:
      widen_block(reinterpret_cast<const Float16*>(piece.data) + at, scratch, n);
      break;
  }
  return scratch;
}

}  // namespace

template <typename T>
bool encode(const std::vector<Piece>& leaf, T weight, const std::vector<const T*>& sums,
            T* out, Wire wire, bool streamed) {
  bool good = true;
  std::size_t at = 0;  // elements written
  // What is added to itself must not be written before it is read.
  const bool inside = std::find(sums.begin(), sums.end(), out) != sums.end();
  T scratch[kBlock], wide[kBlock];
  for (const Piece& piece : leaf) {
    const std::size_t first = at;
    while (at < piece.end()) {
      const std::size_t n = std::min<std::size_t>(kBlock, piece.end() - at);
      const T* x = values(piece, at - first, n, wide);
      T* to = streamed || inside ? scratch : out + at;
      good = (wire == Wire::kAsIs ? plain(x, weight, sums, at, to, n)
                                  : rounded(x, weight, sums, at, to, n, wire)) &&
             good;
      if (streamed) {
        copy_past_caches(out + at, scratch, n * sizeof(T));
      } else if (inside) {
        std::copy(scratch, scratch + n, out + at);
      }
      at += n;
    }
  }
  if (streamed) end_of_copies();
  return good;
}

template <typename From, typename T>
void change(const From* now, const From* before, T* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = now[i] == before[i] ? T{0} : static_cast<T>(now[i] - before[i]);
  }
}

template <typename To, typename T>
void apply(const To* before, const T* change, To* now, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    if constexpr (std::is_integral_v<To>) {
      now[i] = before[i] + static_cast<To>(std::nearbyint(change[i]));
    } else {
      now[i] = before[i] + static_cast<To>(change[i]);
    }
  }
}

template void apply(const float*, const float*, float*, std::size_t);
template void apply(const float*, const double*, float*, std::size_t);
template void apply(const double*, const double*, double*, std::size_t);
template void apply(const std::int64_t*, const float*, std::int64_t*, std::size_t);
template void apply(const std::int64_t*, const double*, std::int64_t*, std::size_t);

template void change(const float*, const float*, float*, std::size_t);
template void change(const float*, const float*, double*, std::size_t);
template void change(const double*, const double*, double*, std::size_t);
template void change(const std::int64_t*, const std::int64_t*, float*, std::size_t);
template void change(const std::int64_t*, const std::int64_t*, double*, std::size_t);

template bool encode(const std::vector<Piece>&, float, const std::vector<const float*>&,
                     float*, Wire, bool);
template bool encode(const std::vector<Piece>&, double,
                     const std::vector<const double*>&, double*, Wire, bool);

}  // namespace codedgrad::ops
