// The learned decoder chooses coefficients and predicts how wrong they are. It is the
// twin of statistics.py and learned.py in codedgrad/lab/decoders. Every slice of a
// bucket has one object, which one thread uses.
#pragma once

#include <memory>

#include "decoder/network.h"
#include "decoder/noise.h"

namespace codedgrad::decoder {

// What was chosen in a step, kept until its label comes.
struct Chosen {
  std::vector<Coefficients> c;  // what the gate let through, by tile
  std::vector<Coefficients> mixed;
  Choices candidates;
  double t = 0.5, s = 0.0;
  Prediction predicted;
  Excess excess;  // where look() was called before
};

class Learned {
 public:
  Learned(int tiles, std::shared_ptr<const Network> network);

  Chosen choose(const Problem& problem) const;
  // Takes a step's look for lean(), see Noise.
  void look(std::int64_t step, const std::vector<double>& base, const Shards& shards,
            const std::vector<double>& weights, double scale) {
    noise_.look(step, base, shards, weights, scale);
  }
  // Judges the noise of what was chosen. Where it is above `most`, the estimate leans
  // on the running average: by a quarter, a half, or wholly.
  void lean(const Problem& problem, double most, Chosen* chosen) const;
  void learn(const Problem& problem, const Chosen& chosen, const Label& label);
  // Learns from a step's own rows, as if the shards `erased`, all complete, were
  // missing and the incomplete ones had no more than what is here of them.
  void teach(const std::vector<double>& base, int tiles, const Shards& shards,
             const std::vector<int>& erased);
  void replay(const Problem& problem) { squares_.replay(problem); }
  long labels() const { return squares_.labels(); }

  // state() returns what the job has learned, pooled over tiles, so that another slice
  // of the same model can begin from it. restore() throws std::invalid_argument on
  // another length.
  std::vector<double> state() const;
  void restore(const std::vector<double>& state);

 private:
  using Errors = std::vector<std::array<double, kCandidates>>;  // by tile
  int gate() const;                                             // -1: the mixture
  int scarce(const Problem& problem) const;  // -1: labels are many, memory is young
  std::vector<Features> features(const Problem& problem, const Choices& c) const;
  std::vector<Context> contexts(const Problem& problem) const;

  const int tiles_;
  const std::shared_ptr<const Network> network_;
  LeastSquares squares_;
  Errors slow_, fast_;
  double slow_weight_ = 0.0, fast_weight_ = 0.0;
  double mixture_ = 0.0;
  Predictor predictor_;
  Noise noise_;  // not saved: it knows what it must after a few steps
};

}  // namespace codedgrad::decoder
