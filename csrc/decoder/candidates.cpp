#include "decoder/candidates.h"

#include <cmath>

namespace codedgrad::decoder {
namespace {

constexpr double kSlow = 0.98, kFast = 0.9, kLeft = 0.9;  // kept, per label
constexpr double kTiny = 1e-6, kSmall = 1e-2;             // ridge

Equations sum_of(const std::vector<Equations>& tiles) {
  Equations out;
  for (const Equations& e : tiles) out.add(1.0, 1.0, e.gram, e.target);
  return out;
}

std::vector<Equations> plus(const std::vector<Equations>& a,
                            const std::vector<Equations>& b) {
  std::vector<Equations> out = a;
  for (std::size_t t = 0; t < out.size(); ++t) {
    out[t].add(1.0, 1.0, b[t].gram, b[t].target);
  }
  return out;
}

}  // namespace

const Coefficients kFixedCoefficients[kFixed] = {
    {0, 0, 0, 0, 0, 0, 0, 0},   // zero
    {1, 0, 0, 0, 0, 0, 0, 0},   // rescale
    {0, 0, 1, 0, 0, 0, 0, 0},   // momentum
    {0, 1, 0, 0, 0, 0, 0, 0},   // previous
    {0, 0, 0, 1, 0, 0, 0, 0},   // stale
    {1, 0, 0, 1, -1, 0, 0, 0},  // saga
    {0, 0, 0, 0, 0, 1, 0, 0},   // stale_mean
    {1, 0, 0, 0, 0, 1, -1, 0},  // saga_mean
    {1, 0, 0, 0, 0, 0, 0, 1},   // local
};

// By Cholesky's factors of the normalised matrix plus the ridge.
Coefficients solve(const Matrix& gram, const Coefficients& target, double ridge) {
  Coefficients inverse{}, y{};
  for (int i = 0; i < kSpan; ++i) {
    const double d = std::sqrt(std::max(gram[i][i], 0.0));
    inverse[i] = d > 1e-150 ? 1.0 / d : 0.0;
  }
  Matrix l{};
  for (int i = 0; i < kSpan; ++i) {
    for (int j = 0; j <= i; ++j) {
      double s = gram[i][j] * inverse[i] * inverse[j] + (i == j ? ridge : 0.0);
      for (int m = 0; m < j; ++m) s -= l[i][m] * l[j][m];
      l[i][j] = i == j ? std::sqrt(std::max(s, 1e-16)) : s / l[j][j];
    }
    double s = target[i] * inverse[i];
    for (int m = 0; m < i; ++m) s -= l[i][m] * y[m];
    y[i] = s / l[i][i];
  }
  for (int i = kSpan; i-- > 0;) {
    for (int m = i + 1; m < kSpan; ++m) y[i] -= l[m][i] * y[m];
    y[i] /= l[i][i];
  }
  for (int i = 0; i < kSpan; ++i) y[i] *= inverse[i];
  return y;
}

void Equations::add(double keep, double scale, const Matrix& g, const Coefficients& b) {
  for (int i = 0; i < kSpan; ++i) {
    for (int j = 0; j < kSpan; ++j) gram[i][j] = keep * gram[i][j] + scale * g[i][j];
    target[i] = keep * target[i] + scale * b[i];
  }
}

void LeastSquares::learn(const Problem& problem, const Label& label) {
  const double s = energy(problem);
  if (s <= 0.0) return;  // a step without energy teaches nothing
  const double scale = 1.0 / s;
  for (std::size_t t = 0; t < slow_.size(); ++t) {
    const Matrix& gram = problem.tiles[t].gram;
    slow_[t].add(kSlow, scale, gram, label.target[t]);
    fast_[t].add(kFast, scale, gram, label.target[t]);
  }
  ++labels_;
}

void LeastSquares::replay(const Problem& problem) {
  const double s = energy(problem);
  if (problem.left_count == 0 || s <= 0.0) return;
  const double scale = 1.0 / s;
  for (std::size_t t = 0; t < left_.size(); ++t) {
    const Tile& tile = problem.tiles[t];
    left_[t].add(kLeft, scale, tile.left_gram, tile.left_target);
  }
}

Choices LeastSquares::candidates(const Problem& problem) const {
  const std::size_t tiles = slow_.size();
  Choices out(tiles);
  std::vector<Equations> now(tiles);
  const double s = energy(problem);
  const double scale = s > 0.0 ? 0.5 / s : 0.0;
  for (std::size_t t = 0; t < tiles; ++t) {
    const Tile& tile = problem.tiles[t];
    now[t].add(0.0, scale, tile.left_gram, tile.left_target);
    for (int i = 0; i < kFixed; ++i) out[t][i] = kFixedCoefficients[i];
  }
  const auto past = plus(left_, now), joint = plus(slow_, now);
  const auto joint_fast = plus(fast_, now);
  const bool some = labels_ > 0, left = problem.left_count > 0;
  const struct {
    const std::vector<Equations>* equations;
    double ridge;
    bool pooled, known;
  } fitted[kCandidates - kFixed] = {
      {&slow_, kTiny, false, some},     {&fast_, kSmall, false, some},
      {&slow_, 1e-3, true, some},       {&past, kSmall, false, left},
      {&past, 1e-3, true, left},        {&now, kSmall, false, left},
      {&now, kSmall, true, left},       {&joint, 1e-4, false, true},
      {&joint_fast, 1e-3, false, true}, {&joint, 1e-4, true, true},
  };
  for (int i = kFixed; i < kCandidates; ++i) {
    const auto& f = fitted[i - kFixed];
    if (f.known && f.pooled) {
      const Equations sum = sum_of(*f.equations);
      const Coefficients c = solve(sum.gram, sum.target, f.ridge);
      for (std::size_t t = 0; t < tiles; ++t) out[t][i] = c;
      continue;
    }
    for (std::size_t t = 0; t < tiles; ++t) {
      const Equations& e = (*f.equations)[t];
      out[t][i] = f.known ? solve(e.gram, e.target, f.ridge) : kFixedCoefficients[1];
    }
  }
  return out;
}

}  // namespace codedgrad::decoder
