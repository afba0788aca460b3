// The 16-bit floats as plain bits, and their conversions: exact upwards, to the nearest
// (ties to even) downwards, also between denormals; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace codedgrad::ops {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(BFloat16 value) {
  return from_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

// Denormal halves are normal floats: 2^-14 is added to their bits and taken off again.
inline float widen(Float16 value) {
  const std::uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const std::uint32_t exponent = magnitude & 0x0f800000u;
  std::uint32_t bits = magnitude + ((127u - 15u) << 23);
  bits += exponent == 0x0f800000u ? (128u - 16u) << 23 : 0u;  // Inf and NaN
  const float denormal = from_bits(magnitude + (113u << 23)) - from_bits(113u << 23);
  if (exponent == 0) bits = bits_of(denormal);
  return from_bits(bits | (static_cast<std::uint32_t>(value.bits & 0x8000u) << 16));
}

template <typename To>
To narrow(float value);

template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded)};
}

template <>
inline Float16 narrow<Float16>(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal halves: rounded in the integer domain; a carry goes into the exponent.
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
  // Denormal halves: adding 0.5 leaves the rounded value in the lowest bits.
  const std::uint32_t small = bits_of(from_bits(magnitude) + 0.5f) - bits_of(0.5f);
  std::uint32_t half = magnitude < (113u << 23) ? small : normal;
  if (magnitude >= (143u << 23)) half = 0x7c00u;  // 2^16 and above
  if (magnitude > 0x7f800000u) half = 0x7e00u;
  return {static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000u))};
}

// What values of T are added up in.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace codedgrad::ops
