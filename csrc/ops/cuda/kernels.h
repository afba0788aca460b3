// The kernels for CUDA. They work on addresses of the current device, on a given stream
// (cudaStream_t); they are started, not waited for. They throw std::invalid_argument
// for arguments that do not fit, std::runtime_error with CUDA's words where a launch
// fails.
#pragma once

#include <cstddef>
#include <vector>

#include "ops/device_sum.h"
#include "ops/wire.h"

namespace codedgrad::ops::cuda {

enum class Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int kMaxInputs = 128;  // of weighted_sum: they travel as kernel arguments

// Does what ops::weighted_sum does on the CPU, with the same bits.
void weighted_sum(const std::vector<double>& weights,
                  const std::vector<const void*>& inputs, Type type, void* out,
                  Type out_type, std::size_t count, Wire wire, void* stream);

// Returns how many doubles of device memory gram wants as `workspace`.
std::size_t gram_workspace(std::size_t count);

// Writes out [k, k], on the device, as ops::gram does on the CPU: at most 64 products
// are added in fp32, the rest in double (of Float64 all). The order of additions is
// fixed by `count` alone, in two stages without atomics, and is not the CPU's.
void gram(const std::vector<const void*>& inputs, Type type, std::size_t count,
          double* out, double* workspace, void* stream);

// Starts a sum with the bits of ops::tree_sum on the CPU, in a stream of its own; rows
// and sums may lie in mapped memory of the host. Returns a cudaError_t and, with 0, a
// ticket. A stack deeper than 13 vectors, which no n <= kMostDeviceInputs needs where
// the deeper side of an addition comes first, is cudaErrorInvalidValue.
int start_sum(const DeviceSum* sum, void** ticket);

// Returns true when kernels of the device reach registered host memory by the host's
// own addresses.
bool sums_host_memory(int device);

// Returns cudaErrorNotReady while the sum is under way. Any other answer, 0 or an error
// of the device, takes the ticket back. Any thread may call it.
int sum_done(void* ticket);

}  // namespace codedgrad::ops::cuda
