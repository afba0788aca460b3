#include <algorithm>

#include "ops/cuda/kernels.h"
#include "ops/cuda/pack.cuh"

namespace codedgrad::ops::cuda {
namespace {

constexpr int kTogether = 4;  // packs of a thread that are under way at once
constexpr int kMostBlocks = 8192;

// All that a launch knows, in its arguments: nothing is copied to the device before it,
// unless there are more pieces than fit.
template <typename T>
struct Encoding {
  const Piece* table;  // on the device; null: `pieces`
  const T* sums[kMostSums];
  T* out;
  T* flag;
  std::uint64_t count;  // elements
  T weight;
  int pieces_count, sums_count;
  Wire wire;
  int before;    // elements from a multiple of 16 bytes to `out`
  bool aligned;  // every sum has as many
  Piece pieces[kInlinePieces];
};
static_assert(sizeof(Encoding<float>) <= 4096 && sizeof(Encoding<double>) <= 4096,
              "larger arguments are not taken by older drivers");

// Returns the first piece of low .. high that ends behind `element`.
__device__ inline int piece_at(const Piece* pieces, int low, int high,
                               std::uint64_t element) {
  while (low < high) {
    const int middle = (low + high) / 2;
    if (pieces[middle].end() > element) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <typename T>
__device__ T value_at(const Piece& piece, std::uint64_t begin, std::uint64_t element) {
  if (piece.data == 0) return T{0};
  const std::uint64_t i = element - begin;
  switch (piece.type()) {
    case Type::kFloat32:
      return static_cast<T>(reinterpret_cast<const float*>(piece.data)[i]);
    case Type::kFloat64:
      return static_cast<T>(reinterpret_cast<const double*>(piece.data)[i]);
    case Type::kBFloat16:
      return widen(reinterpret_cast<const __nv_bfloat16*>(piece.data)[i]);
    default:
      return widen(reinterpret_cast<const __half*>(piece.data)[i]);
  }
}

// Packs of one thread, `apart` elements from one another: all reads are under way
// before the first of them is used.
template <typename From, typename T, int N, int K>
__device__ void load_packs(const From* from, std::uint64_t apart,
                           Pack<T, N> (&out)[K]) {
  const bool whole =
      reinterpret_cast<std::uintptr_t>(from) % sizeof(Pack<From, N>) == 0;
  Pack<From, N> read[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    read[k] = load<From, N>(from + k * apart, 0, N, whole);
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) out[k].at[i] = static_cast<T>(widen(read[k].at[i]));
  }
}

// The same where all of them lie in one piece.
template <typename T, int N, int K>
__device__ void load_inside(const Piece& piece, std::uint64_t first,
                            std::uint64_t apart, Pack<T, N> (&out)[K]) {
  switch (piece.type()) {
    case Type::kFloat32:
      return load_packs(reinterpret_cast<const float*>(piece.data) + first, apart, out);
    case Type::kFloat64:
      return load_packs(reinterpret_cast<const double*>(piece.data) + first, apart,
                        out);
    case Type::kBFloat16:
      return load_packs(reinterpret_cast<const __nv_bfloat16*>(piece.data) + first,
                        apart, out);
    default:
      return load_packs(reinterpret_cast<const __half*>(piece.data) + first, apart,
                        out);
  }
}

// A pack of elements that may lie in any of the pieces low .. high, or outside of the
// run, where they are 0.
template <typename T, int N>
__device__ void load_any(const Piece* pieces, int low, int high, std::int64_t element,
                         std::int64_t count, Pack<T, N> (&out)[1]) {
  if (element >= count) {
    out[0] = {};
    return;
  }
  int at = piece_at(pieces, low, high, element < 0 ? 0 : element);
  std::uint64_t begin = at == 0 ? 0 : pieces[at - 1].end();
  if (element >= 0 && pieces[at].data != 0 &&
      static_cast<std::uint64_t>(element) + N <= pieces[at].end()) {
    load_inside(pieces[at], static_cast<std::uint64_t>(element) - begin, 0, out);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const std::int64_t place = element + i;
    out[0].at[i] = T{0};
    if (place < 0 || place >= count) continue;
    while (pieces[at].end() <= static_cast<std::uint64_t>(place)) {
      begin = pieces[at++].end();
    }
    out[0].at[i] = value_at<T>(pieces[at], begin, static_cast<std::uint64_t>(place));
  }
}

// Sixteen bytes in one store, which the compiler does not make of a Pack here.
__device__ inline void store_whole(float* to, const Pack<float, 4>& x) {
  __stcg(reinterpret_cast<float4*>(to),
         make_float4(x.at[0], x.at[1], x.at[2], x.at[3]));
}
__device__ inline void store_whole(double* to, const Pack<double, 2>& x) {
  __stcg(reinterpret_cast<double2*>(to), make_double2(x.at[0], x.at[1]));
}

// Makes w x the row's values, in place; returns whether they are finite.
template <typename T, int N>
__device__ bool finish(const Encoding<T>& job, Pack<T, N>* x, std::int64_t element) {
  bool good = true;
  const bool inside =
      element >= 0 && static_cast<std::uint64_t>(element) + N <= job.count;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x->at[i] = rounded(times(job.weight, x->at[i]), job.wire);
    good = good && x->at[i] - x->at[i] == T{0};
  }
  for (int s = job.sums_count - 1; s >= 0; --s) {
    Pack<T, N> sum;
    if (job.aligned && inside) {
      sum = *reinterpret_cast<const Pack<T, N>*>(job.sums[s] + element);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const bool there =
            element + i >= 0 && static_cast<std::uint64_t>(element + i) < job.count;
        sum.at[i] = there ? job.sums[s][element + i] : T{0};
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x->at[i] = rounded(plus(x->at[i], sum.at[i]), job.wire);
      if (job.wire != Wire::kAsIs) good = good && x->at[i] - x->at[i] == T{0};
    }
  }
  if (inside) {
    store_whole(job.out + element, *x);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (element + i >= 0 && static_cast<std::uint64_t>(element + i) < job.count) {
        job.out[element + i] = x->at[i];
      }
    }
  }
  return good;
}

// A block takes chunks of the run, however many tensors they are of. Packs are counted
// from the last multiple of 16 bytes that is not behind `out`, so that all of them but
// the first and the last are written whole. The largest tensor is so divided among all
// blocks, and many small ones fill one.
template <typename T, bool kTable>
__global__ void __launch_bounds__(kThreads)
    encode_kernel(const __grid_constant__ Encoding<T> job) {
  constexpr int N = kPack<T>;
  constexpr std::int64_t apart = std::int64_t{kThreads} * N;
  constexpr std::int64_t chunk = apart * kTogether;
  const Piece* pieces =
      kTable ? job.table : job.pieces;  // these have a cache of their own
  const std::int64_t count = static_cast<std::int64_t>(job.count);
  bool good = true;
  for (std::int64_t begin = std::int64_t{blockIdx.x} * chunk - job.before;
       begin < count; begin += std::int64_t{gridDim.x} * chunk) {
    const std::int64_t last = (begin + chunk < count ? begin + chunk : count) - 1;
    const int low = piece_at(pieces, 0, job.pieces_count - 1, begin < 0 ? 0 : begin);
    const bool one = pieces[low].end() > static_cast<std::uint64_t>(last);
    const int high = one ? low : piece_at(pieces, low, job.pieces_count - 1, last);
    const std::int64_t mine = begin + std::int64_t{threadIdx.x} * N;
    Pack<T, N> x[kTogether];
    if (one && begin >= 0 && begin + chunk <= count && pieces[low].data != 0) {
      const std::uint64_t first = low == 0 ? 0 : pieces[low - 1].end();
      load_inside(pieces[low], static_cast<std::uint64_t>(mine) - first,
                  static_cast<std::uint64_t>(apart), x);
    } else {
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        Pack<T, N> one[1];
        load_any(pieces, low, high, mine + k * apart, count, one);
        x[k] = one[0];
      }
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      good = finish(job, &x[k], mine + k * apart) && good;
    }
  }
  if (!good && job.flag != nullptr) *job.flag = T{1};  // all who write, write this
}

template <typename T>
void launch(const EncodeRun& run, cudaStream_t stream) {
  Encoding<T> job;
  job.table = run.table;
  job.pieces_count = static_cast<int>(run.pieces.size());
  job.count = run.pieces.empty() ? 0 : run.pieces.back().end();
  if (job.count == 0) return;
  if (run.pieces.size() > kInlinePieces && run.table == nullptr) {
    throw std::invalid_argument("encode: more than " + std::to_string(kInlinePieces) +
                                " pieces have to lie in the device's memory");
  }
  if (run.sums.size() > kMostSums) {
    throw std::invalid_argument("encode: more than " + std::to_string(kMostSums) +
                                " partial sums");
  }
  job.out = static_cast<T*>(run.out);
  job.flag = static_cast<T*>(run.flag);
  job.weight = static_cast<T>(run.weight);
  job.wire = run.wire;
  const auto lead = [](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % 16;
  };
  job.before = static_cast<int>(lead(run.out) / sizeof(T));
  job.aligned = true;
  job.sums_count = static_cast<int>(run.sums.size());
  for (int s = 0; s < job.sums_count; ++s) {
    job.sums[s] = static_cast<const T*>(run.sums[s]);
    job.aligned = job.aligned && lead(run.sums[s]) == lead(run.out);
  }
  if (run.table == nullptr) {
    std::copy(run.pieces.begin(), run.pieces.end(), job.pieces);
  }
  const std::uint64_t chunk = std::uint64_t{kThreads} * kPack<T> * kTogether;
  const std::uint64_t chunks = (job.count + job.before + chunk - 1) / chunk;
  const auto blocks =
      static_cast<unsigned>(std::min<std::uint64_t>(chunks, kMostBlocks));
  if (run.table == nullptr) {
    encode_kernel<T, false><<<blocks, kThreads, 0, stream>>>(job);
  } else {
    encode_kernel<T, true><<<blocks, kThreads, 0, stream>>>(job);
  }
  check_launch("encode");
}

}  // namespace

void encode(const EncodeRun& run, Type type, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  if (type == Type::kFloat32) {
    launch<float>(run, on);
  } else if (type == Type::kFloat64 && run.wire == Wire::kAsIs) {
    launch<double>(run, on);
  } else {
    throw std::invalid_argument(
        "encode: rows are of floats, or of doubles as they are");
  }
}

}  // namespace codedgrad::ops::cuda
