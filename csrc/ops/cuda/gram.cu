#include <algorithm>

#include "ops/cuda/kernels.h"
#include "ops/cuda/pack.cuh"

namespace codedgrad::ops::cuda {
namespace {

constexpr int kGroup = 8;         // vectors whose inner products one pass forms
constexpr int kMaxBlocks = 1024;  // of the first stage
constexpr int kWarps = kThreads / 32;

template <typename T>
struct Tile {
  const T* rows[kGroup];
  const T* cols[kGroup];
};

// The block's sum of `value`, in a fixed order; to thread 0.
__device__ double block_sum(double value, double* shared) {
  for (int off = 16; off > 0; off /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, off);
  }
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kWarps; ++w) total += shared[w];
  }
  return total;
}

// partial[block, r, c] = the block's share of <rows[r], cols[c]>; on the diagonal rows
// and columns are the same and c >= r only.
template <typename T, int R, int C, bool kDiagonal>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(Tile<T> tile, std::size_t count, bool aligned, double* partial) {
  constexpr int N = kPack<T>;
  constexpr int kInFp32 = 64 / N;  // packs until the fp32 sums go into the double ones
  const std::size_t stride = std::size_t{gridDim.x} * kThreads * N;
  std::size_t begin = (std::size_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  double total[R][C] = {};
  while (begin < count) {
    Wide<T> sum[R][C] = {};
    for (int p = 0; p < kInFp32 && begin < count; ++p, begin += stride) {
      Pack<T, N> right[C];
#pragma unroll
      for (int c = 0; c < C; ++c) {
        right[c] = load<T, N>(tile.cols[c], begin, count, aligned);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const auto left =
            kDiagonal ? right[r] : load<T, N>(tile.rows[r], begin, count, aligned);
#pragma unroll
        for (int c = kDiagonal ? r : 0; c < C; ++c) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            sum[r][c] = fma(widen(left.at[i]), widen(right[c].at[i]), sum[r][c]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = kDiagonal ? r : 0; c < C; ++c) total[r][c] += sum[r][c];
    }
  }
  __shared__ double shared[kWarps];
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int c = kDiagonal ? r : 0; c < C; ++c) {
      const double all = block_sum(total[r][c], shared);
      if (threadIdx.x == 0) partial[(blockIdx.x * R + r) * C + c] = all;
    }
  }
}

// Adds up the blocks' shares, one pair per block, and writes both halves of out [k, k].
__global__ void __launch_bounds__(kThreads)
    pair_kernel(const double* partial, int shares, int rows, int cols, bool diagonal,
                int first_row, int first_col, int k, double* out) {
  const int r = blockIdx.x / cols, c = blockIdx.x % cols;
  const int i = first_row + r, j = first_col + c;
  if (i >= k || j >= k || (diagonal && c < r)) return;
  double sum = 0.0;
  for (int b = threadIdx.x; b < shares; b += kThreads) {
    sum += partial[(b * rows + r) * cols + c];
  }
  __shared__ double shared[kWarps];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) out[i * k + j] = out[j * k + i] = sum;
}

int shares_of(std::size_t count) {
  constexpr std::size_t kEach = kThreads * 32;  // elements
  const std::size_t wanted = (count + kEach - 1) / kEach;
  return static_cast<int>(std::clamp<std::size_t>(wanted, 1, kMaxBlocks));
}

template <typename T>
struct Launcher {
  std::vector<const T*> inputs;
  std::size_t count;
  bool aligned;
  double* out;
  double* workspace;
  cudaStream_t stream;

  template <int R, int C, bool kDiagonal>
  void run(int i, int j) const {
    const int k = static_cast<int>(inputs.size());
    Tile<T> tile;
    // Past the end the last one is repeated; nobody looks at what comes of it.
    for (int r = 0; r < R; ++r) tile.rows[r] = inputs[std::min(i + r, k - 1)];
    for (int c = 0; c < C; ++c) tile.cols[c] = inputs[std::min(j + c, k - 1)];
    const int shares = shares_of(count);
    tile_kernel<T, R, C, kDiagonal>
        <<<shares, kThreads, 0, stream>>>(tile, count, aligned, workspace);
    check_launch("gram");
    pair_kernel<<<R * C, kThreads, 0, stream>>>(workspace, shares, R, C, kDiagonal, i,
                                                j, k, out);
    check_launch("gram");
  }

  void run_all() const {
    const int k = static_cast<int>(inputs.size());
    for (int i = 0; i < k; i += kGroup) {
      const int left = k - i;
      if (left == 1) {
        run<1, 1, true>(i, i);
      } else if (left == 2) {
        run<2, 2, true>(i, i);
      } else if (left <= 4) {
        run<4, 4, true>(i, i);
      } else {
        run<kGroup, kGroup, true>(i, i);
      }
      for (int j = i + kGroup; j < k; j += 4) run<kGroup, 4, false>(i, j);
    }
  }
};

template <typename T>
void launch(const std::vector<const void*>& inputs, std::size_t count, double* out,
            double* workspace, cudaStream_t stream) {
  Launcher<T> launcher{{}, count, true, out, workspace, stream};
  for (const void* input : inputs) {
    launcher.inputs.push_back(static_cast<const T*>(input));
    launcher.aligned = launcher.aligned && is_aligned(input);
  }
  launcher.run_all();
}

}  // namespace

std::size_t gram_workspace(std::size_t count) {
  return static_cast<std::size_t>(shares_of(count)) * kGroup * kGroup;
}

void gram(const std::vector<const void*>& inputs, Type type, std::size_t count,
          double* out, double* workspace, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  if (inputs.size() > 4096) {
    throw std::invalid_argument("gram: at most 4096 inputs");
  }
  if (type == Type::kFloat32) {
    launch<float>(inputs, count, out, workspace, on);
  } else if (type == Type::kFloat64) {
    launch<double>(inputs, count, out, workspace, on);
  } else if (type == Type::kBFloat16) {
    launch<__nv_bfloat16>(inputs, count, out, workspace, on);
  } else {
    launch<__half>(inputs, count, out, workspace, on);
  }
}

}  // namespace codedgrad::ops::cuda
