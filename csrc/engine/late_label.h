// What a step's label is computed from. A label tells the decoder what was missing when
// it chose; it is complete once the step's late rows are here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "engine/attempt.h"

namespace codedgrad {

template <typename T>
class LateLabel {
 public:
  LateLabel() = default;
  LateLabel(const Attempt<T>& attempt, decoder::Chosen chosen, const Units& units,
            const Sketch& sketch, const Rows& rows)
      : step_(attempt.step()),
        problem_(attempt.problem()),
        chosen_(std::move(chosen)),
        span_(attempt.span()),
        arrived_(sketch.size(), 0.0f),
        missing_(sketch.size(), 0.0f),
        scale_(attempt.scale()),
        lacks_(units.all_parts(), 1) {
    for (int u = 0; u < units.count(); ++u) {
      for (int n : attempt.nodes(u)) {
        sketch.add(static_cast<const T*>((*rows.data)[n]), scale_, arrived_.data());
        std::fill(lacks_.begin() + units.first(n), lacks_.begin() + units.end(n), 0);
      }
    }
    left_ = static_cast<int>(std::count(lacks_.begin(), lacks_.end(), 1));
  }

  std::int64_t step() const { return step_; }
  const decoder::Problem& problem() const { return problem_; }
  const decoder::Chosen& chosen() const { return chosen_; }
  bool complete() const { return left_ == 0; }
  // Returns the squared error that teach() found, in the sketch's units.
  double wrong() const { return wrong_; }
  const std::vector<float>& missing() const { return missing_; }

  // For a settled step: the estimate of what is missing, and the rows of units of which
  // only a part is here.
  void keep(BufferRef guess, const Rows& rows, const Units& units,
            const decoder::Shards& shards) {
    guess_ = std::move(guess);
    for (const auto& [node, ref] : *rows.keep) {
      const int u = units.of(node);
      if (u >= 0 && !(shards.alpha[u] < 1.0)) continue;
      have_.push_back({node, ref, static_cast<const T*>((*rows.data)[node])});
    }
  }

  // Takes a late row of unit `u`. Returns by how much the step's result was off in the
  // row's parts; null when the row brought nothing that was lacking.
  BufferRef add(int u, int node, const T* row, const BufferRef& keep,
                const Units& units, const Sketch& sketch, const Vectors<T>& vectors) {
    const auto from = lacks_.begin() + units.first(node);
    const auto to = lacks_.begin() + units.end(node);
    const int parts = units.parts(node);
    const int lacking = static_cast<int>(std::count(from, to, 1));
    std::vector<const T*> inputs = {row};
    std::vector<double> weights = {1.0};
    if (lacking < parts) {
      // A whole unit of which some was here: the rest is what is new.
      if (lacking == 0 || node != units.node(u)) return nullptr;
      for (const Have& have : have_) {
        if (units.of(have.node) != u) continue;
        inputs.push_back(have.data);
        weights.push_back(-1.0);
      }
    }
    if (lacking < parts || node != units.node(u)) have_.push_back({node, keep, row});
    std::fill(from, to, 0);
    left_ -= lacking;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      sketch.add(inputs[i], weights[i] * scale_, missing_.data());
    }
    inputs.push_back(vectors.at(guess_));
    weights.push_back(-lacking * units.part_weight(u) / problem_.rho);
    const BufferRef off = vectors.get();
    vectors.sum(weights, inputs, vectors.at(off));
    return off;
  }

  // Returns what was missing, on the sketch, once the step's whole result is known.
  std::vector<float> missing_of(const T* result, const Sketch& sketch) const {
    std::vector<float> x(sketch.size(), 0.0f);
    sketch.add(result, scale_, x.data());
    for (std::size_t e = 0; e < x.size(); ++e) x[e] -= arrived_[e];
    return x;
  }

  // Teaches the decoder what was missing, weighted, on the sketch. Returns the true
  // error of what it had chosen.
  double teach(const std::vector<float>& missing, const Sketch& sketch,
               decoder::Learned* learned) {
    if (scale_ == 0.0 || problem_.rho <= 0.0) return 0.0;
    const double inverse = 1.0 / problem_.rho;
    decoder::Label label;
    const std::size_t s = sketch.size();
    for (int t = 0; t < sketch.tiles(); ++t) {
      decoder::Coefficients target{};
      double norm = 0.0, cross = 0.0;
      for (std::size_t e = sketch.first(t); e < sketch.first(t + 1); ++e) {
        const double x = inverse * missing[e];
        norm += x * x;
        cross += x * arrived_[e];
        for (int v = 0; v < decoder::kSpan; ++v) target[v] += x * span_[v * s + e];
      }
      label.target.push_back(target);
      label.norm.push_back(norm);
      label.cross.push_back(cross);
    }
    learned->learn(problem_, chosen_, label);
    wrong_ = decoder::wrong(problem_, chosen_.c, label);
    return decoder::true_error(problem_, chosen_.c, label);
  }

 private:
  struct Have {
    int node;
    BufferRef keep;
    const T* data;
  };

  std::int64_t step_ = -1;
  decoder::Problem problem_;
  decoder::Chosen chosen_;
  std::vector<float> span_;     // [kSpan, sketch]
  std::vector<float> arrived_;  // R on the sketch
  std::vector<float> missing_;  // what came late, on the sketch
  double scale_ = 1.0;          // of the sketch
  double wrong_ = 0.0;
  std::vector<char> lacks_;  // by part
  int left_ = 0;             // parts still lacking
  BufferRef guess_;          // the estimate of what is missing, whole
  std::vector<Have> have_;   // rows whose parts do not overlap
};

}  // namespace codedgrad
