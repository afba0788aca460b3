// Conversions of whole vectors between the 16-bit floats and fp32.
#pragma once

#include <cstddef>

#include "ops/cpu/half.h"

namespace codedgrad::ops {

// out[i] = in[i], exact upwards, to the nearest (ties to even) downwards.
void convert(const BFloat16* in, float* out, std::size_t n);
void convert(const Float16* in, float* out, std::size_t n);
void convert(const float* in, BFloat16* out, std::size_t n);
void convert(const float* in, Float16* out, std::size_t n);

}  // namespace codedgrad::ops
