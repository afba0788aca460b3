// The small network of the learned decoder and the predictor of its error: the twins of
// codedgrad/lab/decoders/network.py and predictor.py.
#pragma once

#include <vector>

#include "decoder/candidates.h"

namespace codedgrad::decoder {

constexpr int kFeatures = 6, kContext = 13, kHidden = 16;
constexpr int kOutputs = kFeatures + kCandidates + 2;

struct Network {
  std::vector<double> w1, b1, w2, b2;  // row-major
  // Throws std::invalid_argument where a size is wrong or a weight not finite.
  void check() const;
};

using Features = std::array<std::array<double, kFeatures>, kCandidates>;
using Context = std::array<double, kContext>;

struct Choice {
  std::array<double, kCandidates> w;
  double t, s;
};
Choice choose(const Network& network, const Features& f, const Context& context,
              long labels);

struct Prediction {
  double mean = 0.0, bound = 0.0;
};

class Predictor {
 public:
  Prediction predict(const Problem& problem, const std::vector<Coefficients>& c,
                     double t, double s) const;
  void learn(const Problem& problem, const std::vector<Coefficients>& c,
             const Label& label, double t, double s);
  std::array<double, 5> state() const { return {past_, weight_, true_, raw_, q_}; }
  void restore(const std::array<double, 5>& v) {
    past_ = v[0], weight_ = v[1], true_ = v[2], raw_ = v[3], q_ = v[4];
  }

 private:
  double raw_error(const Problem& problem, const std::vector<Coefficients>& c, double t,
                   double s) const;
  double kappa() const;
  double past_ = 0.0, weight_ = 0.0, true_ = 5.0, raw_ = 5.0, q_ = 2.5;
};

}  // namespace codedgrad::decoder
