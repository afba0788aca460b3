// An owner's slice of one bucket when the arrivals do not cover: what it remembers of
// the shards, when the learned decoder may settle, and what late rows teach it. Only
// the engine's thread uses it. Each slice has one owner, who sends the same bits to
// all.
//
// Inner products are taken on a sketch, a fixed sample of the slice's elements, so that
// choosing costs the same for any model; the weighted sum runs over all elements.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "decoder/learned.h"
#include "engine/approximate.h"
#include "engine/buffer_pool.h"
#include "engine/cover.h"
#include "engine/layout.h"
#include "engine/units.h"

namespace codedgrad {

class Estimator {
 public:
  // Which slice of the payload it is for.
  struct Place {
    int bucket = 0, buckets = 1;
    Slice slice;
    DType dtype = DType::kFloat32;
    int window = 2;  // steps that can be open at once
  };
  // Returns null for a slice without elements.
  static std::unique_ptr<Estimator> make(
      std::shared_ptr<const ApproximateSettings> settings, const Place& place,
      std::shared_ptr<BufferPool> pool);
  virtual ~Estimator() = default;

  const Units& units() const { return units_; }
  // Returns true when every element of the row is finite.
  virtual bool finite(const void* row) const = 0;

  // Returns true when the estimate is within the policy's bounds. settle() or
  // decline() must follow with the same rows.
  virtual bool attempt(std::int64_t step, const Rows& rows) = 0;
  // Returns true when the last attempt failed only because the shards differ by what
  // they hold.
  virtual bool biased() const = 0;
  // The last attempt was not good enough; it is judged when the step is complete.
  virtual void decline(const Rows& rows) = 0;
  // Writes the estimate of the last attempt.
  virtual void settle(void* out, const Rows& rows) = 0;
  // The step's result is known, exact or settled: it is remembered, and attempts at it
  // are judged.
  virtual void decoded(std::int64_t step, const Rows& rows, const void* result,
                       bool exact) = 0;
  // A row came after its step was decoded here.
  virtual void late(std::int64_t step, int node, const void* data,
                    const BufferRef& keep) = 0;
  // Adds what earlier estimates left out to `out`; returns true when there was any.
  virtual bool compensate(void* out) = 0;
  // Does one piece of postponed work; returns false when there is none.
  virtual bool idle() = 0;

  // Returns what was settled since the last call.
  std::vector<Settled> drain() { return std::exchange(settled_, {}); }
  std::vector<double> state() const { return learned_.state(); }
  void restore(const std::vector<double>& state) { learned_.restore(state); }

 protected:
  Estimator(const std::shared_ptr<const ApproximateSettings>& settings, int tiles)
      : units_(settings), learned_(tiles, settings->network) {}

  const Units units_;
  decoder::Learned learned_;
  std::vector<Settled> settled_;
};

}  // namespace codedgrad
