// Sixteen bytes of a vector at once, as fp32 (fp64 for doubles).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "ops/wire.h"

namespace codedgrad::ops::cuda {

constexpr int kThreads = 256;  // of a block

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr int kPack = 16 / sizeof(T);

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

template <typename T>
__device__ T narrow(Wide<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Products and sums rounded one by one, never fused: the CPU's bits.
__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }
__device__ inline float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double plus(double a, double b) { return __dadd_rn(a, b); }

// What is left of a number on the wire.
template <typename T>
__device__ T rounded(T x, Wire wire) {
  if constexpr (std::is_same_v<T, float>) {
    if (wire == Wire::kBFloat16) return widen(narrow<__nv_bfloat16>(x));
    if (wire == Wire::kFloat16) return widen(narrow<__half>(x));
  }
  return x;
}

// N elements that are read or written together.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

// Elements begin .. begin + N - 1 of `from`, 0 from `count` on. `aligned`: to 16 bytes.
template <typename T, int N>
__device__ Pack<T, N> load(const T* from, std::size_t begin, std::size_t count,
                           bool aligned) {
  if (aligned && begin + N <= count) {
    return *reinterpret_cast<const Pack<T, N>*>(from + begin);
  }
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    out.at[i] = begin + i < count ? from[begin + i] : narrow<T>(Wide<T>{0});
  }
  return out;
}

template <typename T, int N>
__device__ void store(T* to, const Pack<T, N>& pack, std::size_t begin,
                      std::size_t count, bool aligned) {
  if (aligned && begin + N <= count) {
    *reinterpret_cast<Pack<T, N>*>(to + begin) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (begin + i < count) to[begin + i] = pack.at[i];
  }
}

inline bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(name) + ": CUDA says " +
                           cudaGetErrorString(error));
}

}  // namespace codedgrad::ops::cuda
