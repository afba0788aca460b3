// Where things lie: buckets in the payload, slices in a bucket, fields in a tag.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
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

enum class Kind : int { kRow = 0, kResult = 1, kProgress = 2, kControl = 3 };

struct TagFields {
  Kind kind = Kind::kRow;
  int session = 0;
  std::int64_t step = 0;
  int bucket = 0;
  int row = 0;
};

constexpr int kSessionBits = 3;
constexpr int kSessions = 1 << kSessionBits;

// A tag is step | bucket | row | session | kind, from high bits to low ones. The step
// is taken modulo a power of two above twice the window: open steps differ by at most
// the window, so a receiver can tell the step from its own.
class TagCodec {
 public:
  TagCodec() = default;
  TagCodec(int window, int buckets, int rows, int max_tag)
      : step_bits_(bits(2 * window + 2)),
        bucket_bits_(bits(buckets)),
        row_bits_(bits(rows)) {
    const int need = 2 + kSessionBits + step_bits_ + bucket_bits_ + row_bits_;
    int have = 0;
    while (have < 31 && (std::int64_t{2} << have) - 1 <= max_tag) ++have;
    if (need > have) {
      throw std::invalid_argument(
          "messages need tags of " + std::to_string(need) + " bits and this MPI has " +
          std::to_string(have) + "; use larger buckets (bucket_mb), a smaller window " +
          "or a code with fewer rows");
    }
  }

  int encode(const TagFields& f) const {
    const std::int64_t step = f.step & ((std::int64_t{1} << step_bits_) - 1);
    std::int64_t tag = step;
    tag = (tag << bucket_bits_) | f.bucket;
    tag = (tag << row_bits_) | f.row;
    tag = (tag << kSessionBits) | f.session;
    return static_cast<int>((tag << 2) | static_cast<int>(f.kind));
  }

  static Kind kind_of(int tag) { return static_cast<Kind>(tag & 3); }
  static int session_of(int tag) { return (tag >> 2) & (kSessions - 1); }

  // `near` is the receiver's own step.
  TagFields decode(int tag, std::int64_t near) const {
    TagFields f;
    f.kind = kind_of(tag);
    f.session = session_of(tag);
    tag >>= 2 + kSessionBits;
    f.row = tag & ((1 << row_bits_) - 1);
    tag >>= row_bits_;
    f.bucket = tag & ((1 << bucket_bits_) - 1);
    tag >>= bucket_bits_;
    const std::int64_t span = std::int64_t{1} << step_bits_;
    std::int64_t ahead = (tag - near) & (span - 1);
    if (ahead >= span / 2) ahead -= span;
    f.step = near + ahead;
    return f;
  }

 private:
  static int bits(int values) {
    int n = 0;
    while ((std::int64_t{1} << n) < values) ++n;
    return n;
  }
  int step_bits_ = 0, bucket_bits_ = 0, row_bits_ = 0;
};

}  // namespace codedgrad
