// A device's runtime as addresses of its functions (of CUDA: cudaSetDevice,
// cudaHostRegister, cudaHostUnregister, cudaEventQuery, cudaMalloc, cudaFree, and sums
// from csrc/ops/cuda), so that the engine is built without it, and runs where it is.
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
  int (*query)(void* event) = nullptr;  // from any thread; 0: all before it is done
  // Null where models cannot be exchanged from the device's own memory.
  int (*allocate)(void** place, std::size_t) = nullptr;
  int (*release)(void*) = nullptr;
  // Takes the calling thread's last error, which another's next call would report.
  int (*take_error)() = nullptr;
  // Null where the device has no kernels. It reads and writes its own memory and
  // pinned memory. 0: the sum is under way, and `ticket` to be asked for. From then
  // until `sum_done` has answered anything but not_ready, all its memory stays.
  int (*start_sum)(const ops::DeviceSum*, void** ticket) = nullptr;
  int (*sum_done)(void* ticket) = nullptr;  // gives the ticket back with its answer
};

}  // namespace codedgrad
