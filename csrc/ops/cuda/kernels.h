// The kernels for CUDA: on addresses of the current device, on a given stream
// (cudaStream_t). They are started, not waited for. Throw std::invalid_argument for
// arguments that do not fit, std::runtime_error with CUDA's words where a launch fails.
#pragma once

#include <cstddef>
#include <vector>

#include "ops/wire.h"

namespace codedgrad::ops::cuda {

enum class Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int kMaxInputs = 128;  // of weighted_sum: they travel as kernel arguments

// As ops::weighted_sum on the CPU, with the same bits.
void weighted_sum(const std::vector<double>& weights,
                  const std::vector<const void*>& inputs, Type type, void* out,
                  Type out_type, std::size_t count, Wire wire, void* stream);

// Doubles of device memory that gram wants as `workspace`.
std::size_t gram_workspace(std::size_t count);

// out [k, k], on the device, as ops::gram on the CPU: 64 products at most are added in
// fp32, the rest in double (Float64: all of it). The order of additions is fixed by
// `count` alone, in two stages without atomics, and is not the CPU's.
void gram(const std::vector<const void*>& inputs, Type type, std::size_t count,
          double* out, double* workspace, void* stream);

}  // namespace codedgrad::ops::cuda
