// A fixed sample of a slice's elements, tile by tile, on which inner products are
// taken. Tiles are the gradient's tensors within the slice, small ones joined; what
// lies behind the gradients (buffers, flags, the loss) is the tail, in no sketch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/layout.h"
#include "ops/cpu/gram.h"

namespace codedgrad {

class Sketch {
 public:
  // `tensors` are the ends of the gradient's tensors in the payload, rising. All
  // `buckets` of a step share one budget, so that a step of a larger model does not
  // cost more.
  Sketch(const Slice& slice, const std::vector<std::size_t>& tensors, int units,
         int buckets)
      : count_(slice.count) {
    const std::size_t shares = std::clamp(buckets, 1, 8);
    const std::size_t gradients = tensors.empty() ? 0 : tensors.back();
    const std::size_t stop =
        std::clamp(gradients, slice.offset, slice.offset + slice.count) - slice.offset;
    const std::size_t most = std::max<std::size_t>(1, 4 / shares);  // tiles
    const std::size_t least = std::max<std::size_t>(256, (stop + most - 1) / most);
    begins_ = {0};
    for (std::size_t end : tensors) {
      if (end <= slice.offset) continue;
      const std::size_t here = std::min(end - slice.offset, stop);
      if (here - begins_.back() >= least) begins_.push_back(here);
    }
    if (begins_.back() < stop) {
      if (begins_.size() > 1) {
        begins_.back() = stop;
      } else {
        begins_.push_back(stop);
      }
    }
    if (begins_.size() == 1) begins_.push_back(0);  // the tail only: one empty tile
    const std::size_t budget =
        std::clamp<std::size_t>(16384 / std::max(1, units), 512, 2048);
    choose(std::max<std::size_t>(256, budget / shares));
    begins_.push_back(slice.count);  // the tail's end
  }

  int tiles() const { return static_cast<int>(begins_.size()) - 2; }
  std::size_t count() const { return count_; }
  std::size_t size() const { return index_.size(); }
  // Tile t has the slice's elements [begin(t), begin(t + 1)); t = tiles() is the tail.
  std::size_t begin(int t) const { return begins_[t]; }
  // Tile t has the places [first(t), first(t + 1)) of the sketch.
  std::size_t first(int t) const { return firsts_[t]; }

  template <typename T>
  void add(const T* from, double weight, float* to) const {
    const T w = static_cast<T>(weight);
    for (std::size_t i = 0; i < index_.size(); ++i) {
      to[i] += static_cast<float>(w * from[index_[i]]);
    }
  }

  template <typename T>
  void take(const T* from, double weight, std::vector<float>* to) const {
    to->assign(size(), 0.0f);
    add(from, weight, to->data());
  }

  void multiply(double factor, float* values) const {
    for (std::size_t i = 0; i < size(); ++i) {
      values[i] = static_cast<float>(values[i] * factor);
    }
  }

  // Divides all values by the largest magnitude among the first `among` ones. Returns
  // the factor; 0 where those are all 0.
  double normalise(std::vector<float>* values, std::size_t among) const {
    float largest = 0.0f;
    for (std::size_t i = 0; i < among; ++i) {
      largest = std::max(largest, std::fabs((*values)[i]));
    }
    if (!(largest > 0.0f) || !std::isfinite(largest)) return 0.0;
    const float factor = 1.0f / largest;
    if (!std::isfinite(factor)) return 0.0;
    for (float& value : *values) value *= factor;
    return factor;
  }

  // Returns the inner products [tiles, n, n] of n sketched vectors.
  std::vector<double> gram(const std::vector<float>& values, int n) const {
    std::vector<double> out(static_cast<std::size_t>(tiles()) * n * n, 0.0);
    std::vector<const float*> rows(n);
    for (int t = 0; t < tiles(); ++t) {
      for (int i = 0; i < n; ++i) rows[i] = values.data() + i * size() + firsts_[t];
      ops::gram<float>(rows, firsts_[t + 1] - firsts_[t],
                       out.data() + static_cast<std::size_t>(t) * n * n);
    }
    return out;
  }

 private:
  // Chooses runs of 16 neighbours, evenly spaced, in every tile by its size.
  void choose(std::size_t budget) {
    constexpr std::size_t kRun = 16;
    firsts_ = {0};
    const std::size_t whole = begins_.back();
    for (std::size_t t = 0; t + 1 < begins_.size(); ++t) {
      const std::size_t size = begins_[t + 1] - begins_[t];
      const std::size_t share =
          whole <= budget ? size : std::max<std::size_t>(128, budget * size / whole);
      const std::size_t runs = (std::min(share, size) + kRun - 1) / kRun;
      for (std::size_t r = 0; r < runs; ++r) {
        const std::size_t at = share >= size ? r * kRun : r * (size - kRun) / runs;
        for (std::size_t i = at; i < std::min(at + kRun, size); ++i) {
          index_.push_back(static_cast<std::uint32_t>(begins_[t] + i));
        }
      }
      firsts_.push_back(index_.size());
    }
  }

  std::size_t count_;
  std::vector<std::size_t> begins_, firsts_;
  std::vector<std::uint32_t> index_;
};

// Returns true when no element is NaN or infinite.
inline bool all_finite(const float* values, std::size_t count) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bad |= (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  }
  return bad == 0;
}

inline bool all_finite(const double* values, std::size_t count) {
  std::uint64_t bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    constexpr std::uint64_t kExponent = 0x7ff0000000000000u;
    bad |= (bits & kExponent) == kExponent ? 1u : 0u;
  }
  return bad == 0;
}

}  // namespace codedgrad
