#include "ops/cpu/weighted_sum.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "ops/cpu/combine.h"
#include "ops/cpu/convert.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/past_caches.h"

namespace codedgrad::ops {
namespace {

constexpr std::size_t kBlock = 1024;         // elements; a few blocks fit the L1 cache
constexpr std::size_t kChunk = 64 << 10;     // elements that a thread takes at once
constexpr std::size_t kThreaded = 4 << 20;   // elements; below, threads cost too much
constexpr std::size_t kStreamed = 16 << 20;  // bytes of output; beyond, past the caches

// Sums one block after another; owns the scratch memory.
template <typename T, typename Out>
class Summation {
  using Wide = Accumulator<T>;

 public:
  Summation(const std::vector<Wide>& weights, const std::vector<const T*>& inputs,
            Wire wire, bool streamed)
      : weights_(weights),
        inputs_(inputs),
        wire_(wire),
        streamed_(streamed),
        sum_(kBlock),
        wire_scratch_(wire == Wire::kAsIs ? 0 : kBlock),
        stored_(kBlock) {}

  void run(std::size_t begin, std::size_t n, Out* out, Out* out2) {
    const bool direct = std::is_same_v<Wide, Out> && wire_ == Wire::kAsIs && !streamed_;
    Wide* sum = sum_.data();
    if constexpr (std::is_same_v<Wide, Out>) {
      if (direct) sum = out;
    }
    if (inputs_.empty()) std::fill(sum, sum + n, Wide{0});
    for (std::size_t j = 0; j < inputs_.size(); j += kTogether) {
      const int k =
          static_cast<int>(std::min<std::size_t>(kTogether, inputs_.size() - j));
      const bool last = j + k == inputs_.size();
      const T* in[kTogether];
      for (int i = 0; i < k; ++i) in[i] = inputs_[j + i] + begin;
      if constexpr (std::is_same_v<T, Out> && !std::is_same_v<Wide, Out>) {
        if (last && wire_ == Wire::kAsIs) {  // nothing to be done but to store it
          Out* to = streamed_ ? stored_.data() : out;
          combine(j == 0 ? nullptr : sum_.data(), in, &weights_[j], k, to, n);
          return stores(to, n, out, out2);
        }
      }
      // Partial sums stay in the scratch memory: `out` may be a later input.
      combine(j == 0 ? nullptr : sum_.data(), in, &weights_[j], k,
              last ? sum : sum_.data(), n);
    }
    if constexpr (std::is_same_v<Wide, float>) {
      if (wire_ == Wire::kBFloat16) round<BFloat16>(sum, n);
      if (wire_ == Wire::kFloat16) round<Float16>(sum, n);
    }
    stores(as_out(sum, streamed_ ? stored_.data() : out, n), n, out, out2);
  }

 private:
  template <typename Rounded>
  void round(float* sum, std::size_t n) {
    auto* rounded = reinterpret_cast<Rounded*>(wire_scratch_.data());
    convert(sum, rounded, n);
    convert(rounded, sum, n);
  }
  // The sum as Out, where it lies or in `to`.
  const Out* as_out(const Wide* sum, Out* to, std::size_t n) {
    if constexpr (std::is_same_v<Wide, Out>) {
      return sum;
    } else {
      convert(sum, to, n);
      return to;
    }
  }
  void stores(const Out* from, std::size_t n, Out* out, Out* out2) const {
    if (from != out) store(from, n, out);
    if (out2 != nullptr) store(from, n, out2);
  }
  void store(const Out* from, std::size_t n, Out* to) const {
    if (streamed_) {
      copy_past_caches(to, from, n * sizeof(Out));
    } else {
      std::memcpy(to, from, n * sizeof(Out));
    }
  }

  const std::vector<Wide>& weights_;
  const std::vector<const T*>& inputs_;
  Wire wire_;
  bool streamed_;
  std::vector<Wide> sum_;
  std::vector<std::uint16_t> wire_scratch_;
  std::vector<Out> stored_;
};

}  // namespace

template <typename T, typename Out>
void weighted_sum(const std::vector<double>& weights,
                  const std::vector<const T*>& inputs, Out* out, Out* out2,
                  std::size_t count, Wire wire, int threads) {
  using Wide = Accumulator<T>;
  if (weights.size() != inputs.size()) {
    throw std::invalid_argument("weighted_sum: got " + std::to_string(weights.size()) +
                                " weights for " + std::to_string(inputs.size()) +
                                " inputs; give one weight for every input");
  }
  if (std::is_same_v<T, double> && wire != Wire::kAsIs) {
    throw std::invalid_argument(
        "weighted_sum: doubles are not rounded to a 16-bit wire type; give fp32");
  }
  std::vector<Wide> used_weights;
  std::vector<const T*> used;
  for (std::size_t j = 0; j < inputs.size(); ++j) {
    if (weights[j] == 0.0) continue;
    used_weights.push_back(static_cast<Wide>(weights[j]));
    used.push_back(inputs[j]);
  }
  // Storing rounds to Out as it is.
  if (std::is_same_v<Out, BFloat16> && wire == Wire::kBFloat16) wire = Wire::kAsIs;
  if (std::is_same_v<Out, Float16> && wire == Wire::kFloat16) wire = Wire::kAsIs;
  const bool streamed = count * sizeof(Out) >= kStreamed;
  if (count * (used.size() + 1) < kThreaded) threads = 1;
  parallel_for((count + kChunk - 1) / kChunk, threads, [&](std::size_t chunk) {
    Summation<T, Out> sum(used_weights, used, wire, streamed);
    const std::size_t end = std::min(count, (chunk + 1) * kChunk);
    for (std::size_t begin = chunk * kChunk; begin < end; begin += kBlock) {
      sum.run(begin, std::min(kBlock, end - begin), out + begin,
              out2 == nullptr ? nullptr : out2 + begin);
    }
    if (streamed) end_of_copies();
  });
}

#define CODEDGRAD_DEFINE(T, Out)                                                       \
  template void weighted_sum(const std::vector<double>&, const std::vector<const T*>&, \
                             Out*, Out*, std::size_t, Wire, int);
CODEDGRAD_DEFINE(double, double)
CODEDGRAD_DEFINE(float, float)
CODEDGRAD_DEFINE(float, BFloat16)
CODEDGRAD_DEFINE(float, Float16)
CODEDGRAD_DEFINE(BFloat16, float)
CODEDGRAD_DEFINE(BFloat16, BFloat16)
CODEDGRAD_DEFINE(BFloat16, Float16)
CODEDGRAD_DEFINE(Float16, float)
CODEDGRAD_DEFINE(Float16, BFloat16)
CODEDGRAD_DEFINE(Float16, Float16)

}  // namespace codedgrad::ops
