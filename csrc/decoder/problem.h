// One step of one owner in inner products: the twin of codedgrad/lab/decoders/gram.py,
// which defines every symbol. It knows shards and vectors, but no workers or messages.
#pragma once

#include <array>
#include <vector>

namespace codedgrad::decoder {

// arrived, previous, average, last_missing, last_arrived, mean_missing, mean_arrived,
// partial; the order of SPAN in gram.py.
constexpr int kSpan = 8;

using Coefficients = std::array<double, kSpan>;
using Matrix = std::array<Coefficients, kSpan>;  // symmetric

struct Tile {
  Matrix gram{};          // <v_i, v_j>
  Coefficients cross{};   // <R, v_i>
  double total_norm = 0;  // <R, R>
  Matrix left_gram{};     // means over the left-out shards
  Coefficients left_target{};
  double left_norm = 0;
};

struct Problem {
  std::vector<Tile> tiles;
  double rho = 0;  // missing share
  int count = 0;   // shards of which something is missing
  int shards = 0;
  double whole = 0;  // share of the shards of which something is missing
  double staleness = 0, known = 1, partial = 0;
  int left_count = 0;
};

struct Label {
  std::vector<Coefficients> target;  // <x, v_i> by tile
  std::vector<double> norm;          // <x, x>
  std::vector<double> cross;         // <x, R>
};

// The state of the k shards when the owner decodes.
struct Shards {
  std::vector<double> alpha;   // arrived share
  std::vector<double> weight;  // share of the batch; sums to 1
  std::vector<char> seen;      // remembered
  std::vector<double> age;     // of the memory, in steps
  // Returns 1 for complete shards and 0 for others; alpha itself where none is
  // complete.
  std::vector<double> solid() const;
  int size() const { return static_cast<int>(alpha.size()); }
  int vectors() const { return 3 * size() + 2; }
};

// Returns the span as combinations of U = (rows, last, mean, previous, average), in
// row-major order [3 k + 2, kSpan].
std::vector<double> span_weights(const Shards& shards);

// Makes the problem from `base` [tiles, n, n], the inner products of U (n = 3 k + 2),
// and the weights.
Problem make_problem(const std::vector<double>& base, int tiles, const Shards& shards,
                     const std::vector<double>& weights);

// Returns |x - V c|^2 >= 0.
double squared_error(const Coefficients& c, const Matrix& gram,
                     const Coefficients& target, double norm);

// Returns the squared length of what arrived and of the running average, over all
// tiles.
double energy(const Problem& problem);

// Returns |R + rho V c|^2, over all tiles.
double estimate_norm(const Problem& problem, const std::vector<Coefficients>& c);

// Returns |g^ - g|^2 once the missing part is known.
double wrong(const Problem& problem, const std::vector<Coefficients>& c,
             const Label& label);

// Returns |g^ - g|^2 / |g|^2 once the missing part is known. Where g is 0 it is 0 for
// an estimate of 0 and infinite for any other.
double true_error(const Problem& problem, const std::vector<Coefficients>& c,
                  const Label& label);

}  // namespace codedgrad::decoder
