#include <algorithm>

#include "ops/cuda/kernels.h"
#include "ops/cuda/pack.cuh"

namespace codedgrad::ops::cuda {
namespace {

template <typename T>
struct Inputs {
  const T* data[kMaxInputs];
  Wide<T> weight[kMaxInputs];
  int size;
};

template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Inputs<T> inputs, Out* out, std::size_t count, Wire wire, bool aligned) {
  constexpr int N = kPack<T>;
  const std::size_t stride = std::size_t{gridDim.x} * kThreads * N;
  std::size_t begin = (std::size_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  for (; begin < count; begin += stride) {
    Wide<T> sum[N] = {};
#pragma unroll 4
    for (int j = 0; j < inputs.size; ++j) {
      const auto in = load<T, N>(inputs.data[j], begin, count, aligned);
      const Wide<T> weight = inputs.weight[j];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Wide<T> term = times(weight, widen(in.at[i]));
        sum[i] = j == 0 ? term : plus(sum[i], term);
      }
    }
    Pack<Out, N> result;
#pragma unroll
    for (int i = 0; i < N; ++i) result.at[i] = narrow<Out>(rounded(sum[i], wire));
    store<Out, N>(out, result, begin, count, aligned);
  }
}

template <typename T, typename Out>
void launch(const std::vector<double>& weights, const std::vector<const void*>& inputs,
            void* out, std::size_t count, Wire wire, cudaStream_t stream) {
  Inputs<T> used;
  used.size = 0;
  bool aligned = is_aligned(out);
  for (std::size_t j = 0; j < inputs.size(); ++j) {
    if (weights[j] == 0.0) continue;
    if (used.size == kMaxInputs) {
      throw std::invalid_argument("weighted_sum: more than " +
                                  std::to_string(kMaxInputs) +
                                  " inputs of non-zero weight; sum them in groups");
    }
    used.data[used.size] = static_cast<const T*>(inputs[j]);
    used.weight[used.size++] = static_cast<Wide<T>>(weights[j]);
    aligned = aligned && is_aligned(inputs[j]);
  }
  if (count == 0) return;
  const std::size_t each = std::size_t{kThreads} * kPack<T>;
  const std::size_t blocks = std::min<std::size_t>((count + each - 1) / each, 1u << 30);
  sum_kernel<T, Out><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      used, static_cast<Out*>(out), count, wire, aligned);
  check_launch("weighted_sum");
}

template <typename T>
void launch_into(const std::vector<double>& weights,
                 const std::vector<const void*>& inputs, void* out, Type out_type,
                 std::size_t count, Wire wire, cudaStream_t stream) {
  if (out_type == Type::kFloat32) {
    launch<T, float>(weights, inputs, out, count, wire, stream);
  } else if (out_type == Type::kBFloat16) {
    launch<T, __nv_bfloat16>(weights, inputs, out, count, wire, stream);
  } else if (out_type == Type::kFloat16) {
    launch<T, __half>(weights, inputs, out, count, wire, stream);
  } else {
    throw std::invalid_argument("weighted_sum: only doubles are summed into doubles");
  }
}

}  // namespace

void weighted_sum(const std::vector<double>& weights,
                  const std::vector<const void*>& inputs, Type type, void* out,
                  Type out_type, std::size_t count, Wire wire, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  if (weights.size() != inputs.size()) {
    throw std::invalid_argument("weighted_sum: one weight for every input");
  }
  if (type == Type::kFloat32) {
    launch_into<float>(weights, inputs, out, out_type, count, wire, on);
  } else if (type == Type::kBFloat16) {
    launch_into<__nv_bfloat16>(weights, inputs, out, out_type, count, wire, on);
  } else if (type == Type::kFloat16) {
    launch_into<__half>(weights, inputs, out, out_type, count, wire, on);
  } else if (out_type == Type::kFloat64 && wire == Wire::kAsIs) {
    launch<double, double>(weights, inputs, out, count, wire, on);
  } else {
    throw std::invalid_argument("weighted_sum: doubles are summed into doubles, as is");
  }
}

}  // namespace codedgrad::ops::cuda
