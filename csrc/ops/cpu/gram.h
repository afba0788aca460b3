// All inner products of a few vectors, in one streaming pass. Raw pointers only.
#pragma once

#include <cstddef>
#include <vector>

namespace codedgrad::ops {

// out[i * k + j] = sum_e inputs[i][e] * inputs[j][e], k = inputs.size(), for e < count.
// T is float, double, BFloat16 or Float16 (half.h).
//
// Products of double are added in double. All others are added in fp32, 64 at
// most (every 8th element of a block of 512, by fused multiply-add), and such sums in
// double, so that |error| <= 64 * 2^-24 * sum_e |inputs[i][e] * inputs[j][e]| (4e-6 of
// it; 1e-7 is usual), and a product beyond 3.4e38 is Inf. Integers are exact while 64
// products stay below 2^24. The order of additions is fixed by `count` alone: the same
// bits for any number of threads and on any machine; out is exactly symmetric.
template <typename T>
void gram(const std::vector<const T*>& inputs, std::size_t count, double* out,
          int threads = 1);

}  // namespace codedgrad::ops
