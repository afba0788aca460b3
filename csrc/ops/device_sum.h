// What a device is asked to sum, in C's layout. It is the seam between the engine and
// kernels that the engine is not linked with.
#pragma once

#include <cstddef>

namespace codedgrad::ops {

constexpr int kMostDeviceInputs = 240;  // they travel as arguments of one kernel

// A sum like tree_sum's (csrc/ops/cpu/sums.h), without rounding: out[i], and out2[i]
// unless out2 is null, becomes the program's value at i. The program pushes inputs 0,
// 1,
// ... in turn. All addresses are the device's. The device copies what `program` and
// `inputs` point to.
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
