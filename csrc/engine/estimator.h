// An owner's slice of one bucket when the arrivals do not cover: what it remembers of
// the shards, when the learned decoder may settle, and what late rows teach it. Used
// by the engine's thread alone, and the same bits are sent to all workers.
//
// Inner products are taken on a sketch, a fixed sample of the slice's elements, so
// that choosing costs the same for any model; the weighted sum runs over all of it.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "decoder/learned.h"
#include "engine/buffer_pool.h"
#include "engine/cover.h"
#include "engine/layout.h"

namespace codedgrad {

// How a step may end without a cover. A unit is what a worker sends in one row when
// nobody is late: usually a shard.
struct ApproximateSettings {
  double max_error = 0.1;  // bound on |g^ - g|^2 / |g|^2 of a slice
  double patience = 0.1;   // of the time until half of the batch was there
  bool compensate = false;
  std::vector<int> left, right, parent, start, stop;  // the summation tree
  std::vector<int> units;                             // their nodes
  std::vector<double> weights;                        // their shares of the batch
  std::vector<std::size_t> tensors;  // ends of the gradient's tensors in the payload
  std::shared_ptr<const decoder::Network> network;
};

// By node; null: not here. With who keeps them.
struct Rows {
  const std::vector<const void*>* data;
  const std::vector<std::pair<int, BufferRef>>* keep;
};

// A settled slice, and again, with the truth, once all late rows have come.
struct Settled {
  std::int64_t step = 0;
  int bucket = 0;
  double missing = 0, predicted = 0, bound = 0;
  double truth = -1;  // -1: not known (yet)
};

class Estimator {
 public:
  // For a slice of one of `size` workers. Slices without elements have none.
  static std::unique_ptr<Estimator> make(
      std::shared_ptr<const ApproximateSettings> config, int bucket, int buckets,
      const Slice& slice, int window, DType dtype, std::shared_ptr<BufferPool> pool);
  virtual ~Estimator() = default;

  int unit_of(int node) const { return unit_of_[node]; }  // -1: of none
  // True when every element is finite.
  virtual bool finite(const void* row) const = 0;
  // Arrived share of the batch.
  double share(const std::vector<const void*>& rows) const;
  // True when all but the refused units are here.
  bool rest_is_here(const std::vector<const void*>& rows,
                    const std::vector<char>& refused) const;

  // How wrong would the estimate be? For settle(), which must follow with the same
  // rows.
  virtual decoder::Prediction attempt(std::int64_t step, const Rows& rows) = 0;
  // The last attempt was not good enough; it is judged when the step is complete.
  virtual void decline(const Rows& rows) = 0;
  // The estimate of the last attempt.
  virtual void settle(void* out, const Rows& rows) = 0;
  // After the step's result is known, exact or settled: memory, and labels of attempts.
  virtual void decoded(std::int64_t step, const Rows& rows, const void* result,
                       bool exact) = 0;
  // A row that came after its step was decoded here.
  virtual void late(std::int64_t step, int node, const void* data,
                    const BufferRef& keep) = 0;
  // Adds what earlier estimates left out; true when there was any.
  virtual bool compensate(void* out) = 0;
  // Does one piece of postponed work; false when there is none.
  virtual bool idle() = 0;

  std::vector<Settled> drain() { return std::exchange(settled_, {}); }
  std::vector<double> state() const { return learned_.state(); }
  void restore(const std::vector<double>& state) { learned_.restore(state); }

 protected:
  Estimator(std::shared_ptr<const ApproximateSettings> config, int tiles);
  // Arrived nodes below `node`, largest first found.
  void collect(int node, const std::vector<const void*>& rows,
               std::vector<int>* nodes) const;
  double part_weight(int unit) const;

  const std::shared_ptr<const ApproximateSettings> config_;
  std::vector<int> unit_of_;  // by node
  decoder::Learned learned_;
  std::vector<Settled> settled_;
};

}  // namespace codedgrad
