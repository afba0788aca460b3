// CUDA on a processor, as far as the kernels of csrc/ops/cuda use it: what they compute
// can be tested where there is no GPU. How fast, and what a GPU's compiler makes of
// them, can not.
//
// A block's threads are contexts that run in turn, each to its next barrier; blocks run
// one after another, and a launch returns when all have ended. The launch syntax and
// dynamic shared memory are put into C++ by tests/ops/emulation.py.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(n)
#define __shared__ static  // one block at a time

struct uint3 {
  unsigned x, y, z;
};
inline uint3 threadIdx, blockIdx, gridDim;

namespace emulated {

constexpr std::size_t kStack = std::size_t{128} << 10;
constexpr unsigned kMostThreads = 1024;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool ended = false;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline std::function<void()> body;
inline std::vector<char> shared;
inline double slots[kMostThreads];  // of shuffles

inline unsigned char* shared_memory() {
  const auto at = reinterpret_cast<std::uintptr_t>(shared.data());
  return reinterpret_cast<unsigned char*>((at + 15) / 16 * 16);
}

inline void enter() {
  body();
  fibers[threadIdx.x].ended = true;
}

inline void yield() {
  const unsigned me = threadIdx.x;
  swapcontext(&fibers[me].context, &scheduler);
}

inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.ended = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool some = true; some;) {
    some = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].ended) continue;
      some = true;
      threadIdx.x = t;
      swapcontext(&scheduler, &fibers[t].context);
    }
  }
}

// kernel<<<grid, threads, bytes, stream>>>(arguments)
struct Launch {
  unsigned grid, threads;
  std::size_t bytes;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), const Arguments&... arguments) const {
    if (fibers.size() < threads) fibers.resize(threads);
    shared.assign(bytes + 16, '\xff');  // NaN
    body = [&] { kernel(arguments...); };
    gridDim.x = grid;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) run_block(threads);
  }
};

template <typename Grid, typename Threads, typename Stream>
Launch launch(Grid grid, Threads threads, std::size_t bytes, Stream) {
  return {static_cast<unsigned>(grid), static_cast<unsigned>(threads), bytes};
}

}  // namespace emulated

inline void __syncthreads() { emulated::yield(); }

inline double __shfl_down_sync(unsigned, double value, int off) {
  const unsigned me = threadIdx.x;
  emulated::slots[me] = value;
  emulated::yield();
  const double theirs = emulated::slots[me % 32 + off < 32 ? me + off : me];
  emulated::yield();
  return theirs;
}

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
// In one instruction, so an address that is not aligned is an error on a device.
template <typename T>
void __stcg(T* to, T value) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(T) != 0) std::abort();
  *to = value;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }

using cudaStream_t = void*;
using cudaEvent_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorNotReady = 600
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }

enum { cudaDevAttrCanUseHostPointerForRegisteredMem = 91 };
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  return *value = 1, cudaSuccess;
}
inline cudaError_t cudaDeviceGetStreamPriorityRange(int*, int*) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  static char any;
  return *stream = &any, cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new char(0), cudaSuccess;
}
// A sum is under way for one question, as on a device.
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  auto& asked = *static_cast<char*>(event);
  asked = asked == 1 ? 2 : 1;
  return asked == 1 ? cudaErrorNotReady : cudaSuccess;
}
