// What an owner remembers of its slice: of every unit the last gradient and the running
// mean, and the last and the average result. Rows are kept as sent, which is the
// unit's weight times its gradient; their sketches are of gradients, not weighted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/sketch.h"
#include "engine/units.h"
#include "ops/cpu/weighted_sum.h"

namespace codedgrad {

constexpr double kAverageKeep = 0.9, kMeanGain = 0.2;  // as in arrivals.py

// Vectors of a slice's length, from the pool.
template <typename T>
class Vectors {
 public:
  Vectors(std::size_t count, std::shared_ptr<BufferPool> pool)
      : count_(count), pool_(std::move(pool)) {}

  std::size_t count() const { return count_; }
  static T* at(const BufferRef& buffer) { return reinterpret_cast<T*>(buffer->data()); }
  BufferRef get() const { return pool_->get(count_ * sizeof(T)); }
  BufferRef zeros() const {
    BufferRef buffer = get();
    std::memset(buffer->data(), 0, count_ * sizeof(T));
    return buffer;
  }
  // out = a * out + b * other
  void blend(T* out, double a, const T* other, double b) const {
    ops::weighted_sum<T, T>({a, b}, {out, other}, out, nullptr, count_);
  }
  void sum(const std::vector<double>& weights, const std::vector<const T*>& inputs,
           T* out) const {
    ops::weighted_sum<T, T>(weights, inputs, out, nullptr, count_);
  }

 private:
  const std::size_t count_;
  const std::shared_ptr<BufferPool> pool_;
};

template <typename T>
class SliceMemory {
 public:
  struct Shard {
    const T* last = nullptr;
    BufferRef keep, mean;
    std::vector<float> last_sketch, mean_sketch;
    std::int64_t step = -1, seen = 0;
  };

  SliceMemory(const Units* units, const Sketch* sketch, Vectors<T> vectors)
      : units_(units),
        sketch_(sketch),
        vectors_(std::move(vectors)),
        shards_(units->count()),
        previous_(vectors_.zeros()),
        average_(vectors_.zeros()) {
    sketch_results();
  }

  const Shard& shard(int unit) const { return shards_[unit]; }
  const T* mean(int unit) const { return vectors_.at(shards_[unit].mean); }
  const T* previous() const { return vectors_.at(previous_); }
  const T* average() const { return vectors_.at(average_); }
  const std::vector<float>& previous_sketch() const { return previous_sketch_; }
  const std::vector<float>& average_sketch() const { return average_sketch_; }

  // A step's whole units.
  void remember(std::int64_t step, const Rows& rows) {
    for (int unit = 0; unit < units_->count(); ++unit) {
      std::vector<int> nodes;
      units_->collect(unit, *rows.data, &nodes);
      if (units_->whole(unit, nodes)) remember(unit, step, nodes, rows);
    }
  }

  // A unit in one row.
  void remember(int unit, std::int64_t step, const T* data, BufferRef keep) {
    Shard& shard = shards_[unit];
    if (step <= shard.step) return;
    // A whole row of the own worker would be kept for a slice of it.
    if (keep->bytes() > 2 * vectors_.count() * sizeof(T) + 4096) {
      BufferRef own = vectors_.get();
      std::memcpy(own->data(), data, vectors_.count() * sizeof(T));
      data = vectors_.at(own);
      keep = std::move(own);
    }
    ++shard.seen;
    shard.step = step;
    shard.last = data;
    shard.keep = keep;
    sketch_->take(data, 1.0 / units_->weight(unit), &shard.last_sketch);
    if (!shard.mean) shard.mean = vectors_.zeros();
    const double gain = std::max(1.0 / static_cast<double>(shard.seen), kMeanGain);
    due_.push_back({unit, gain, data, std::move(keep)});
    if (due_.size() > 4 * shards_.size()) idle();  // rows are not kept for ever
  }

  // The result of a step.
  void decoded(std::int64_t step, const T* result) {
    std::memcpy(vectors_.at(previous_), result, vectors_.count() * sizeof(T));
    const double keep = decoded_ > 0 ? kAverageKeep : 0.0;
    vectors_.blend(vectors_.at(average_), keep, result, 1.0 - keep);
    sketch_results();
    decoded_ = step + 1;
  }

  // The result of an earlier step was off by this.
  void correct(std::int64_t step, const T* off) {
    const double age = static_cast<double>(decoded_ - 1 - step);
    if (age == 0.0) vectors_.blend(vectors_.at(previous_), 1.0, off, 1.0);
    vectors_.blend(vectors_.at(average_), 1.0, off,
                   (1.0 - kAverageKeep) * std::pow(kAverageKeep, age));
    sketch_results();
  }

  // Brings one mean up to date; returns false when all are.
  bool idle() {
    if (due_.empty()) return false;
    const Due due = std::move(due_.front());
    due_.pop_front();
    Shard& shard = shards_[due.unit];
    vectors_.blend(vectors_.at(shard.mean), 1.0 - due.gain, due.data, due.gain);
    sketch_->take(vectors_.at(shard.mean), 1.0 / units_->weight(due.unit),
                  &shard.mean_sketch);
    return true;
  }
  void flush() {
    while (idle()) {
    }
  }

 private:
  struct Due {
    int unit;
    double gain;
    const T* data;
    BufferRef keep;
  };

  void remember(int unit, std::int64_t step, const std::vector<int>& nodes,
                const Rows& rows) {
    const T* data = static_cast<const T*>((*rows.data)[nodes[0]]);
    BufferRef keep;
    for (const auto& [node, ref] : *rows.keep) {
      if (node == nodes[0]) keep = ref;
    }
    if (nodes.size() > 1) {
      keep = vectors_.zeros();
      std::vector<const T*> inputs;
      for (int n : nodes) inputs.push_back(static_cast<const T*>((*rows.data)[n]));
      vectors_.sum(std::vector<double>(inputs.size(), 1.0), inputs, vectors_.at(keep));
      data = vectors_.at(keep);
    }
    remember(unit, step, data, keep);
  }

  void sketch_results() {
    sketch_->take(previous(), 1.0, &previous_sketch_);
    sketch_->take(average(), 1.0, &average_sketch_);
  }

  const Units* const units_;
  const Sketch* const sketch_;
  const Vectors<T> vectors_;
  std::vector<Shard> shards_;  // by unit
  BufferRef previous_, average_;
  std::vector<float> previous_sketch_, average_sketch_;
  std::deque<Due> due_;
  std::int64_t decoded_ = 0;  // steps
};

}  // namespace codedgrad
