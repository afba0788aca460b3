// The kernels for CUDA. They work on addresses of the current device, on a given stream
// (cudaStream_t); they are started, not waited for. They throw std::invalid_argument
// for arguments that do not fit, std::runtime_error with CUDA's words where a launch
// fails.
#pragma once

#include <cstddef>
#include <vector>

#include "ops/device_sum.h"
#include "ops/piece.h"
#include "ops/wire.h"

namespace codedgrad::ops::cuda {

constexpr int kMaxInputs = 128;  // of weighted_sum: they travel as kernel arguments

// Does what ops::weighted_sum does on the CPU, with the same bits.
void weighted_sum(const std::vector<double>& weights,
                  const std::vector<const void*>& inputs, Type type, void* out,
                  Type out_type, std::size_t count, Wire wire, void* stream);

constexpr int kInlinePieces = 240;  // of encode: they travel as kernel arguments
constexpr int kMostSums = 16;       // that encode adds

// What encode is asked for. All addresses but the pieces' own are the device's.
struct EncodeRun {
  const std::vector<Piece>& pieces;
  const Piece* table;  // the pieces on the device; null where they are few
  double weight;       // finite and not negative
  const std::vector<const void*>& sums;
  void* out;
  void* flag;  // one value of the row's type; null: nobody asks
  Wire wire;
};

// Writes a run of a row as ops::encode does on the CPU (csrc/ops/cpu/encode.h), with
// the same bits, by one launch. Where that returns false, *flag becomes 1; elsewhere it
// stays as it was. `type` is the row's, kFloat32 or kFloat64.
void encode(const EncodeRun& run, Type type, void* stream);

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
