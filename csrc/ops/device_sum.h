// What a device is asked to sum, in C's layout: the seam between the engine and kernels
// that it is not linked with.
#pragma once

#include <cstddef>

namespace codedgrad::ops {

constexpr int kMostDeviceInputs = 240;  // they travel as arguments of one kernel

// As tree_sum (csrc/ops/cpu/sums.h), without rounding: out[i] = the program's value at
// i, also into out2 unless null. The program pushes inputs 0, 1, ... in turn. All
// addresses are the device's. What is pointed to by `program` and `inputs` is copied.
struct DeviceSum {
  int device;
  int is_double;  // else float
  const int* program;
  int tokens;
  int inputs_count;  // at most kMostDeviceInputs
  const void* const* inputs;
  void* out;
  void* out2;
  std::size_t count;
};

}  // namespace codedgrad::ops
