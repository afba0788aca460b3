// A linear combination of vectors in one streaming pass. Raw pointers only.
#pragma once

#include <cstddef>
#include <vector>

#include "ops/wire.h"

namespace codedgrad::ops {

// out[i] = round(sum_j weights[j] * inputs[j][i]) for i < count; also into out2 unless
// null. T and Out are float, BFloat16 or Float16 (half.h), or both double.
//
// Weights, products and sums are fp32 (double for double), in the order of j, without
// fused multiply-add; then the sum is rounded to `wire`, then to Out, to the nearest
// with ties to even. So the bits depend on the arguments alone, not on the number of
// threads nor on the machine. Inputs of weight 0 are not read (NaN x 0 is left out);
// without any other the sum is 0. out and out2 may be one of the inputs, but must not
// overlap them otherwise.
// Throws std::invalid_argument unless there is one weight for every input, and for
// doubles with a wire.
template <typename T, typename Out>
void weighted_sum(const std::vector<double>& weights,
                  const std::vector<const T*>& inputs, Out* out, Out* out2,
                  std::size_t count, Wire wire = Wire::kAsIs, int threads = 1);

}  // namespace codedgrad::ops
