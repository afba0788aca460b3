#include <algorithm>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "ops/cpu/sums.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/pack.cuh"

namespace codedgrad::ops::cuda {
namespace {

constexpr int kBlockThreads = 128;  // whose stacks share a block's memory
constexpr int kMostDepth = 12;      // vectors on a stack
constexpr int kMostTokens = 2 * kMostDeviceInputs - 1;

template <typename T>
struct Program {
  const T* inputs[kMostDeviceInputs];
  std::int16_t tokens[kMostTokens];
  int length;
};

// Every thread runs the program on packs of its own. The topmost vector is in
// registers, those below it in shared memory, and the input that comes next is on its
// way meanwhile: it may be in the host's memory.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    tree_kernel(const __grid_constant__ Program<T> program, T* out, T* out2,
                std::size_t count, bool aligned) {
  constexpr int N = kPack<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto* stack = reinterpret_cast<Pack<T, N>*>(memory) + threadIdx.x;
  const std::size_t stride = std::size_t{gridDim.x} * kBlockThreads * N;
  std::size_t begin = (std::size_t{blockIdx.x} * kBlockThreads + threadIdx.x) * N;
  const int inputs = (program.length + 1) / 2;
  for (; begin < count; begin += stride) {
    auto top = load<T, N>(program.inputs[0], begin, count, aligned);
    auto next = top;
    if (inputs > 1) next = load<T, N>(program.inputs[1], begin, count, aligned);
    int pushed = 1, below = 0;
    for (int i = 1; i < program.length; ++i) {
      if (program.tokens[i] >= 0) {
        stack[below++ * kBlockThreads] = top;
        top = next;
        if (++pushed < inputs) {
          next = load<T, N>(program.inputs[pushed], begin, count, aligned);
        }
      } else {
        const Pack<T, N> left = stack[--below * kBlockThreads];
#pragma unroll
        for (int e = 0; e < N; ++e) top.at[e] = plus(left.at[e], top.at[e]);
      }
    }
    store<T, N>(out, top, begin, count, aligned);
    if (out2 != nullptr) store<T, N>(out2, top, begin, count, aligned);
  }
}

// The vectors below the top, at most; -1 where the program is not well formed.
int depth_of(const DeviceSum& sum) {
  int depth = 0, deepest = 0, pushed = 0;
  for (int i = 0; i < sum.tokens; ++i) {
    if (sum.program[i] == kAdd) {
      if (--depth < 1) return -1;
    } else if (sum.program[i] == pushed) {
      ++pushed;
      if (++depth > deepest) deepest = depth;
    } else {
      return -1;
    }
  }
  return depth == 1 && pushed == sum.inputs_count ? deepest - 1 : -1;
}

template <typename T>
cudaError_t launch(const DeviceSum& sum, int depth, cudaStream_t stream) {
  Program<T> program;
  program.length = sum.tokens;
  bool aligned = is_aligned(sum.out) && is_aligned(sum.out2);
  for (int i = 0; i < sum.inputs_count; ++i) {
    program.inputs[i] = static_cast<const T*>(sum.inputs[i]);
    aligned = aligned && is_aligned(sum.inputs[i]);
  }
  for (int i = 0; i < sum.tokens; ++i) {
    program.tokens[i] = static_cast<std::int16_t>(sum.program[i]);
  }
  if (sum.count == 0) return cudaSuccess;
  const std::size_t each = std::size_t{kBlockThreads} * kPack<T>;
  const std::size_t blocks = std::min<std::size_t>((sum.count + each - 1) / each, 4096);
  const std::size_t shared = std::size_t{kBlockThreads} * 16 * std::max(depth, 1);
  tree_kernel<T><<<static_cast<unsigned>(blocks), kBlockThreads, shared, stream>>>(
      program, static_cast<T*>(sum.out), static_cast<T*>(sum.out2), sum.count, aligned);
  return cudaGetLastError();
}

// One stream a device, beside those that compute; events are used again.
struct Lane {
  cudaStream_t stream = nullptr;
  std::vector<cudaEvent_t> free;
};
struct Ticket {
  int device;
  cudaEvent_t done;
};

std::mutex mutex;
std::unordered_map<int, Lane>& lanes() {  // outlives every thread that may still ask
  static auto* all = new std::unordered_map<int, Lane>;
  return *all;
}

cudaError_t prepare(Lane* lane, cudaEvent_t* event) {
  if (lane->stream == nullptr) {
    // Others wait for the sum, which is short; a backward may fill the device.
    int least = 0, most = 0;
    cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &most);
    if (error == cudaSuccess) {
      error = cudaStreamCreateWithPriority(&lane->stream, cudaStreamNonBlocking, most);
    }
    if (error != cudaSuccess) return error;
  }
  if (!lane->free.empty()) {
    *event = lane->free.back();
    lane->free.pop_back();
    return cudaSuccess;
  }
  return cudaEventCreateWithFlags(event, cudaEventDisableTiming);
}

}  // namespace

int start_sum(const DeviceSum* sum, void** ticket) {
  const int depth = depth_of(*sum);
  if (depth < 0 || depth > kMostDepth || sum->inputs_count > kMostDeviceInputs) {
    return cudaErrorInvalidValue;
  }
  cudaError_t error = cudaSetDevice(sum->device);
  if (error != cudaSuccess) return error;
  std::lock_guard<std::mutex> lock(mutex);
  Lane& lane = lanes()[sum->device];
  cudaEvent_t event = nullptr;
  error = prepare(&lane, &event);
  if (error != cudaSuccess) return error;
  error = sum->is_double ? launch<double>(*sum, depth, lane.stream)
                         : launch<float>(*sum, depth, lane.stream);
  if (error == cudaSuccess) error = cudaEventRecord(event, lane.stream);
  if (error != cudaSuccess) {
    lane.free.push_back(event);
    return error;
  }
  *ticket = new Ticket{sum->device, event};
  return cudaSuccess;
}

bool sums_host_memory(int device) {
  int can = 0;
  const cudaError_t error = cudaDeviceGetAttribute(
      &can, cudaDevAttrCanUseHostPointerForRegisteredMem, device);
  return error == cudaSuccess && can != 0;
}

int sum_done(void* ticket) {
  auto* asked = static_cast<Ticket*>(ticket);
  const cudaError_t answer = cudaEventQuery(asked->done);
  if (answer == cudaErrorNotReady) {
    cudaGetLastError();  // not an error that somebody else should find
    return answer;
  }
  std::lock_guard<std::mutex> lock(mutex);
  lanes()[asked->device].free.push_back(asked->done);
  delete asked;
  return answer;
}

}  // namespace codedgrad::ops::cuda
