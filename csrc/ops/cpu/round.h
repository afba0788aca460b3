// Rounding in place to the type that travels.
#pragma once

#include <cstddef>
#include <stdexcept>

#include "ops/cpu/convert.h"
#include "ops/wire.h"

namespace codedgrad::ops {

constexpr std::size_t kBlock = 2048;  // elements; a few blocks fit the L1 cache

template <typename Half>
void round_block(float* values, std::size_t n) {
  Half narrow[kBlock];
  convert(values, narrow, n);
  convert(narrow, values, n);
}

// At most kBlock values.
inline void round_to(Wire wire, float* values, std::size_t n) {
  if (wire == Wire::kBFloat16) round_block<BFloat16>(values, n);
  if (wire == Wire::kFloat16) round_block<Float16>(values, n);
}

inline void round_to(Wire wire, double*, std::size_t) {
  if (wire != Wire::kAsIs) throw std::invalid_argument("doubles are not rounded");
}

}  // namespace codedgrad::ops
