// The inner loop of weighted_sum: a few inputs at once, all in registers.
#pragma once

#include <cstddef>

#include "ops/cpu/half.h"

namespace codedgrad::ops {

constexpr int kTogether = 4;  // inputs at once

// to[i] = from[i] + sum_j w[j] * in[j][i] for i < n, j < k <= kTogether, in that order;
// without from[i] where `from` is null. `to` may be any of the others.
void combine(const float* from, const float* const* in, const float* w, int k,
             float* to, std::size_t n);
void combine(const double* from, const double* const* in, const double* w, int k,
             double* to, std::size_t n);
void combine(const float* from, const BFloat16* const* in, const float* w, int k,
             float* to, std::size_t n);
void combine(const float* from, const Float16* const* in, const float* w, int k,
             float* to, std::size_t n);
// The same, rounded as it is stored.
void combine(const float* from, const BFloat16* const* in, const float* w, int k,
             BFloat16* to, std::size_t n);
void combine(const float* from, const Float16* const* in, const float* w, int k,
             Float16* to, std::size_t n);

}  // namespace codedgrad::ops
