// How noisy an estimate is, in the batch's own sampling noise: the twin of
// codedgrad/lab/decoders/noise.py, which has the formulas.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "decoder/problem.h"

namespace codedgrad::decoder {

// What estimating adds to the noise of a step, as a share of the batch's own.
struct Excess {
  double share = std::numeric_limits<double>::infinity();
  double expected = 0.0;  // squared error if the missing are like the arrived; 0: none
  double noise = 0.0;     // squared, of the batch
  double credit = 0.0;    // what is gained by leaning on memory
  double unbiased = std::numeric_limits<double>::infinity();  // share without bias

  // Returns the share that a squared error makes, NaN where there is no noise.
  double share_of(double wrong) const { return wrong / noise - credit; }
};

class Noise {
 public:
  // Takes the inner products of a look at a step [tiles, n, n], the shards and the
  // span's weights; `scale` is what the vectors were multiplied by.
  void look(std::int64_t step, const std::vector<double>& base, const Shards& shards,
            const std::vector<double>& weights, double scale);
  // Judges coefficients, for the problem of the last look.
  Excess excess(const Problem& problem, const std::vector<Coefficients>& c) const;
  // Learns that an estimate's squared error was `wrong`.
  void learn(const Excess& excess, double wrong);

 private:
  double bias() const;  // spread between the shards over spread in time, at least 1
  double kappa() const { return true_ / weight_; }

  std::vector<double> now_;  // the batch's noise by tile; empty: it is not known
  double here_ = 0.0;        // share of the batch of the complete shards
  double each_ = 0.0;        // their mean share
  Coefficients current_{};   // how much of this step's rows is in each vector
  double scale_ = 1.0;       // of the last look
  // Recent sums, without scale, and of how many steps.
  double spread_ = 0.0, in_time_ = 0.0, steps_ = 0.0;
  std::int64_t step_ = -1;            // the last one in these sums
  double true_ = 4.0, weight_ = 4.0;  // recent true errors over expected ones
};

}  // namespace codedgrad::decoder
