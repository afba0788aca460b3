// One look at a slice whose arrivals do not cover: the sketches of all that can be
// combined, their inner products, and the estimate that follows from coefficients.
//
// With k units the vectors are U = (rows, last, mean, previous, average), 3 k + 2 of
// them, in that order (codedgrad/lab/decoders/gram.py defines every symbol).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "decoder/learned.h"
#include "engine/slice_memory.h"

namespace codedgrad {

template <typename T>
class Attempt {
 public:
  Attempt(const Units* units, const Sketch* sketch, const SliceMemory<T>* memory)
      : units_(units), sketch_(sketch), memory_(memory) {}

  std::int64_t step() const { return step_; }
  const decoder::Shards& shards() const { return shards_; }
  const decoder::Problem& problem() const { return problem_; }
  const std::vector<double>& base() const { return base_; }
  // Returns the span as combinations of U, see decoder::span_weights.
  const std::vector<double>& weights() const { return weights_; }
  // Returns the factor that was applied to the sketches; 0 where all rows are 0.
  double scale() const { return scale_; }
  // Returns the arrived nodes of a unit.
  const std::vector<int>& nodes(int unit) const { return nodes_[unit]; }

  // The memory's means must be up to date.
  void look(std::int64_t step, const std::vector<const void*>& rows) {
    step_ = step;
    const int k = units_->count();
    std::vector<double> weights(k);
    for (int u = 0; u < k; ++u) weights[u] = units_->weight(u);
    shards_ = {std::vector<double>(k), weights, std::vector<char>(k),
               std::vector<double>(k)};
    nodes_.assign(k, {});
    const std::size_t s = sketch_->size();
    sketched_.assign(static_cast<std::size_t>(3 * k + 2) * s, 0.0f);
    const auto place = [&](int i) { return sketched_.data() + i * s; };
    const auto copy = [&](const std::vector<float>& from, int i) {
      std::copy(from.begin(), from.end(), place(i));
    };
    for (int u = 0; u < k; ++u) {
      units_->collect(u, rows, &nodes_[u]);
      int parts = 0;
      for (int n : nodes_[u]) {
        sketch_->add(static_cast<const T*>(rows[n]), 1.0, place(u));
        parts += units_->parts(n);
      }
      shards_.alpha[u] = static_cast<double>(parts) / units_->parts(units_->node(u));
      if (parts > 0) {
        sketch_->multiply(1.0 / (shards_.alpha[u] * weights[u]), place(u));
      }
      const auto& shard = memory_->shard(u);
      shards_.seen[u] = shard.seen > 0;
      shards_.age[u] = shard.seen > 0 ? static_cast<double>(step_ - shard.step) : 0.0;
      if (shard.seen == 0) continue;
      copy(shard.last_sketch, k + u);
      copy(shard.mean_sketch, 2 * k + u);
    }
    copy(memory_->previous_sketch(), 3 * k);
    copy(memory_->average_sketch(), 3 * k + 1);
    scale_ = sketch_->normalise(&sketched_, static_cast<std::size_t>(k) * s);
    weights_ = decoder::span_weights(shards_);
    base_ = sketch_->gram(sketched_, 3 * k + 2);
    problem_ = decoder::make_problem(base_, sketch_->tiles(), shards_, weights_);
  }

  // guess = rho V c and out = R + guess, tile by tile; the tail is rescaled.
  void sum(const std::vector<const void*>& rows,
           const std::vector<decoder::Coefficients>& c, T* out, T* guess) const {
    for (int t = 0; t <= sketch_->tiles(); ++t) {
      const std::size_t begin = sketch_->begin(t),
                        count = sketch_->begin(t + 1) - begin;
      if (count == 0) continue;
      const bool tail = t == sketch_->tiles();
      decoder::Coefficients rescale{};
      rescale[0] = 1.0;
      Terms terms = terms_of(rows, begin, tail ? rescale : c[t]);
      ops::weighted_sum<T, T>(terms.weights, terms.inputs, guess + begin, nullptr,
                              count);
      terms.arrived.push_back(guess + begin);
      ops::weighted_sum<T, T>(std::vector<double>(terms.arrived.size(), 1.0),
                              terms.arrived, out + begin, nullptr, count);
    }
  }

  // Returns V, the vectors that coefficients combine, on the sketch [kSpan, sketch].
  std::vector<float> span() const {
    const std::size_t s = sketch_->size();
    std::vector<float> out(decoder::kSpan * s, 0.0f);
    for (int i = 0; i < shards_.vectors(); ++i) {
      for (int v = 0; v < decoder::kSpan; ++v) {
        const auto w = static_cast<float>(weights_[i * decoder::kSpan + v]);
        if (w == 0.0f) continue;
        const float* from = &sketched_[i * s];
        float* to = &out[v * s];
        for (std::size_t e = 0; e < s; ++e) to[e] += w * from[e];
      }
    }
    return out;
  }

 private:
  struct Terms {
    std::vector<double> weights;
    std::vector<const T*> inputs;
    std::vector<const T*> arrived;  // R is their sum
  };

  Terms terms_of(const std::vector<const void*>& rows, std::size_t begin,
                 const decoder::Coefficients& c) const {
    const int k = units_->count();
    std::vector<double> combined(3 * k + 2, 0.0);
    for (int i = 0; i < 3 * k + 2; ++i) {
      for (int s = 0; s < decoder::kSpan; ++s) {
        combined[i] += problem_.rho * weights_[i * decoder::kSpan + s] * c[s];
      }
    }
    Terms terms;
    const auto use = [&](const T* data, double weight) {
      terms.inputs.push_back(data + begin);
      terms.weights.push_back(weight);
    };
    for (int u = 0; u < k; ++u) {
      const double w = units_->weight(u);
      for (int n : nodes_[u]) {
        use(static_cast<const T*>(rows[n]), combined[u] / (shards_.alpha[u] * w));
        terms.arrived.push_back(terms.inputs.back());
      }
      if (combined[k + u] != 0.0) use(memory_->shard(u).last, combined[k + u] / w);
      if (combined[2 * k + u] == 0.0) continue;
      use(memory_->mean(u), combined[2 * k + u] / w);
    }
    use(memory_->previous(), combined[3 * k]);
    use(memory_->average(), combined[3 * k + 1]);
    return terms;
  }

  const Units* const units_;
  const Sketch* const sketch_;
  const SliceMemory<T>* const memory_;
  std::int64_t step_ = -1;
  decoder::Shards shards_;
  std::vector<std::vector<int>> nodes_;  // by unit
  std::vector<float> sketched_;          // U
  double scale_ = 0.0;
  std::vector<double> base_, weights_;
  decoder::Problem problem_;
};

}  // namespace codedgrad
