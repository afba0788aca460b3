#include "ops/cpu/gram.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/half.h"
#include "ops/cpu/parallel.h"

namespace codedgrad::ops {
namespace {

constexpr std::size_t kBlock = 512;       // elements; blocks of 8 inputs fit L1
constexpr std::size_t kChunk = 64 << 10;  // elements that a thread takes at once
constexpr std::size_t kChunks = 1024;     // at most; each has a partial result

// Vectors of 32 bytes with and without registers that wide: the same lanes, so the
// same bits. (target_clones would split them before it makes the clones.)
#define CODEDGRAD_TARGET
namespace narrow_registers {
#include "ops/cpu/gram_tile.h"
}
#undef CODEDGRAD_TARGET

#if defined(__x86_64__) && defined(__GNUC__)
#define CODEDGRAD_TARGET __attribute__((target("avx2")))
namespace wide_registers {
#include "ops/cpu/gram_tile.h"
}
#undef CODEDGRAD_TARGET
bool has_wide_registers() { return __builtin_cpu_supports("avx2") != 0; }
#else
namespace wide_registers = narrow_registers;
bool has_wide_registers() { return false; }
#endif

// out [k, k], zero before: the upper triangle of the gram matrix of one chunk.
template <typename T>
void chunk(const T* const* inputs, std::size_t k, std::size_t begin, std::size_t end,
           bool wide, double* out) {
  using Wide = Accumulator<T>;
  constexpr bool kConvert = !std::is_same_v<T, Wide>;
  std::vector<Wide> converted(kConvert ? k * kBlock : 0);
  std::vector<const Wide*> in(k);
  for (std::size_t at = begin; at < end; at += kBlock) {
    const std::size_t n = std::min(kBlock, end - at);
    for (std::size_t i = 0; i < k; ++i) {
      if constexpr (kConvert) {
        Wide* to = converted.data() + i * kBlock;
        for (std::size_t e = 0; e < n; ++e) to[e] = widen(inputs[i][at + e]);
        in[i] = to;
      } else {
        in[i] = inputs[i] + at;
      }
    }
    if (wide) {
      wide_registers::block<Wide>(in.data(), k, n, out);
    } else {
      narrow_registers::block<Wide>(in.data(), k, n, out);
    }
  }
}

}  // namespace

template <typename T>
void gram(const std::vector<const T*>& inputs, std::size_t count, double* out,
          int threads) {
  const std::size_t k = inputs.size();
  std::size_t size = std::max(kChunk, (count + kChunks - 1) / kChunks);
  size = (size + kBlock - 1) / kBlock * kBlock;
  const std::size_t chunks = (count + size - 1) / size;
  const bool wide = has_wide_registers();
  std::vector<double> partial(chunks * k * k);
  parallel_for(chunks, threads, [&](std::size_t c) {
    chunk(inputs.data(), k, c * size, std::min(count, (c + 1) * size), wide,
          partial.data() + c * k * k);
  });
  std::fill(out, out + k * k, 0.0);
  for (std::size_t c = 0; c < chunks; ++c) {
    for (std::size_t i = 0; i < k * k; ++i) out[i] += partial[c * k * k + i];
  }
  for (std::size_t i = 0; i < k; ++i) {
    for (std::size_t j = 0; j < i; ++j) out[i * k + j] = out[j * k + i];
  }
}

template void gram(const std::vector<const float*>&, std::size_t, double*, int);
template void gram(const std::vector<const double*>&, std::size_t, double*, int);
template void gram(const std::vector<const BFloat16*>&, std::size_t, double*, int);
template void gram(const std::vector<const Float16*>&, std::size_t, double*, int);

}  // namespace codedgrad::ops
