// A device's runtime as addresses of its functions, so that the engine is built without
// the device's library and still uses it where it is. For CUDA they are cudaSetDevice,
// cudaHostRegister, cudaHostUnregister, cudaEventQuery, cudaMalloc, cudaFree,
// cudaGetLastError, and sums from csrc/ops/cuda.
#pragma once

#include <cstddef>

#include "ops/device_sum.h"

namespace codedgrad {

struct DeviceCalls {
  int device = 0;
  int not_ready = 0;  // what `query` and `sum_done` answer before they answer 0
  unsigned pin_flags = 0;
  int (*set_device)(int) = nullptr;  // for the calling thread
  int (*pin)(void*, std::size_t, unsigned) = nullptr;
  int (*unpin)(void*) = nullptr;
  // Any thread may call it. 0: all that came before the event is done.
  int (*query)(void* event) = nullptr;
  // These are null where models cannot be exchanged from the device's own memory.
  int (*allocate)(void** place, std::size_t) = nullptr;
  int (*release)(void*) = nullptr;
  // Clears the calling thread's last error, which somebody else's next call would
  // report.
  int (*take_error)() = nullptr;
  // These are null where the device has no kernels. A sum reads and writes the device's
  // own memory and pinned memory. start_sum answers 0 when the sum is under way; then
  // sum_done is asked with the ticket, and all memory of the sum must stay until it
  // answers anything but not_ready.
  int (*start_sum)(const ops::DeviceSum*, void** ticket) = nullptr;
  int (*sum_done)(void* ticket) = nullptr;  // any other answer takes the ticket back
};

}  // namespace codedgrad
