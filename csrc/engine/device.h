// A device's runtime as addresses of its functions (of CUDA: cudaSetDevice,
// cudaHostRegister, cudaHostUnregister, cudaEventQuery), so that the engine is built
// without it, and runs where it is.
#pragma once

#include <cstddef>

namespace codedgrad {

struct DeviceCalls {
  int device = 0;
  int not_ready = 0;  // what `query` answers before it answers 0
  unsigned pin_flags = 0;
  int (*set_device)(int) = nullptr;  // for the calling thread
  int (*pin)(void*, std::size_t, unsigned) = nullptr;
  int (*unpin)(void*) = nullptr;
  int (*query)(void* event) = nullptr;  // from any thread; 0: all before it is done
};

}  // namespace codedgrad
