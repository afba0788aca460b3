// The coefficients to choose from: the twin of codedgrad/lab/decoders/candidates.py.
#pragma once

#include <vector>

#include "decoder/problem.h"

namespace codedgrad::decoder {

// zero, rescale, momentum, previous, stale, saga, stale_mean, saga_mean, local;
// online_ls, fast, pooled, replayed, replayed_pooled, left_out, left_out_pooled,
// joint, joint_fast, joint_pooled.
constexpr int kFixed = 9, kCandidates = 19;
extern const Coefficients kFixedCoefficients[kFixed];

// Returns argmin_c c^T G c - 2 c^T b + ridge |D c|^2, where D^2 is the diagonal of G
// and ridge > 0. Vectors of length 0 get the coefficient 0.
Coefficients solve(const Matrix& gram, const Coefficients& target, double ridge);

// The normal equations of one kind of label.
struct Equations {
  Matrix gram{};
  Coefficients target{};
  void add(double keep, double scale, const Matrix& g, const Coefficients& b);
};

using Choices = std::vector<std::array<Coefficients, kCandidates>>;  // by tile

class LeastSquares {
 public:
  explicit LeastSquares(int tiles) : slow_(tiles), fast_(tiles), left_(tiles) {}
  void learn(const Problem& problem, const Label& label);
  void replay(const Problem& problem);  // the step's left-out problems
  Choices candidates(const Problem& problem) const;
  long labels() const { return labels_; }

  // slow, fast, left-out, by tile; to save and restore.
  const std::vector<Equations>* kind(int i) const {
    return i == 0 ? &slow_ : i == 1 ? &fast_ : &left_;
  }
  std::vector<Equations>* kind(int i) {
    return i == 0 ? &slow_ : i == 1 ? &fast_ : &left_;
  }
  void set_labels(long labels) { labels_ = labels; }

 private:
  std::vector<Equations> slow_, fast_, left_;
  long labels_ = 0;
};

}  // namespace codedgrad::decoder
