// Where things lie: buckets in the payload, slices in a bucket.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <vector>

namespace codedgrad {

struct Slice {
  std::size_t offset = 0;  // elements, from the start of the payload
  std::size_t count = 0;
};

// The payload of `starts.back()` elements is cut into buckets, each bucket into one
// slice per worker (its owner). Slices begin at multiples of 16 elements of the
// bucket, so that a small bucket leaves the last workers without one.
class Layout {
 public:
  Layout() = default;
  Layout(std::vector<std::size_t> starts, int workers)
      : starts_(std::move(starts)), workers_(workers) {
    bool good = starts_.size() >= 2 && starts_.front() == 0 && workers >= 1;
    for (std::size_t i = 1; good && i < starts_.size(); ++i) {
      good = starts_[i] > starts_[i - 1];
    }
    if (!good) throw std::invalid_argument("bucket boundaries must rise from 0");
  }

  int buckets() const { return static_cast<int>(starts_.size()) - 1; }
  std::size_t count() const { return starts_.back(); }

  Slice slice(int bucket, int owner) const {
    constexpr std::size_t kGrain = 16;
    const std::size_t n = starts_[bucket + 1] - starts_[bucket];
    const std::size_t each = (n + workers_ - 1) / workers_;
    const std::size_t step = (each + kGrain - 1) / kGrain * kGrain;
    const std::size_t begin = std::min(n, step * owner);
    return {starts_[bucket] + begin, std::min(n, begin + step) - begin};
  }

 private:
  std::vector<std::size_t> starts_;
  int workers_ = 1;
};

}  // namespace codedgrad
