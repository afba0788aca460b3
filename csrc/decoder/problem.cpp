#include "decoder/problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace codedgrad::decoder {
namespace {

// What a left-out problem's span is made of: R' = sum_l a_l rows_l, H' and E' likewise
// over the remembered shards, and shard j's own rows, last and mean.
enum Part { kR, kQ, kH, kLast, kE, kMean, kPrevious, kAverage, kParts };
using PartGram = std::array<std::array<double, kParts>, kParts>;
using PartWeights = std::array<std::array<double, kSpan>, kParts>;

PartWeights left_out_weights(double a, bool seen, double arrived, double known) {
  PartWeights v{};
  const double others = arrived - a;
  v[kR][0] = 1.0 / others;
  v[kQ][0] = -a / others;
  v[kPrevious][1] = v[kAverage][2] = 1.0;
  const double remembered = known - (seen ? a : 0.0);
  const int sums[] = {kH, kE}, own[] = {kLast, kMean};
  for (int i = 0; i < 2; ++i) {
    const int missing = 3 + 2 * i;
    if (seen) {
      v[own[i]][missing] = 1.0;
    } else {
      v[kR][missing] = v[kR][0];
      v[kQ][missing] = v[kQ][0];
    }
    if (remembered > 1e-12) {
      v[sums[i]][missing + 1] = 1.0 / remembered;
      if (seen) v[own[i]][missing + 1] = -a / remembered;
    } else {
      v[kR][missing + 1] = v[kR][0];
      v[kQ][missing + 1] = v[kQ][0];
    }
  }
  return v;
}

void add_left_out(const PartGram& g, const PartWeights& v, Tile* tile) {
  PartWeights gv{};
  for (int i = 0; i < kParts; ++i) {
    for (int j = 0; j < kParts; ++j) {
      for (int s = 0; s < kSpan; ++s) gv[i][s] += g[i][j] * v[j][s];
    }
  }
  for (int i = 0; i < kParts; ++i) {
    for (int s = 0; s < kSpan; ++s) {
      for (int t = 0; t < kSpan; ++t) tile->left_gram[s][t] += v[i][s] * gv[i][t];
    }
  }
  for (int s = 0; s < kSpan; ++s) tile->left_target[s] += gv[kQ][s];
  tile->left_norm += g[kQ][kQ];
}

// Products of one tile's base Gram matrix [n, n] with the three sums.
struct Sums {
  std::vector<double> r, h, e;  // B s, [n]
  std::array<std::vector<double>, 3> weights;
};

void multiply(const double* base, const std::vector<double>& s,
              std::vector<double>* out) {
  const std::size_t n = s.size();
  out->assign(n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    double sum = 0.0;
    for (std::size_t j = 0; j < n; ++j) sum += base[i * n + j] * s[j];
    (*out)[i] = sum;
  }
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void left_out(const double* base, const Shards& shards, int left, Tile* tile) {
  const int k = shards.size(), n = shards.vectors();
  const std::vector<double> alpha = shards.solid();
  std::vector<double> sr(n, 0.0), sh(n, 0.0), se(n, 0.0);
  double arrived = 0.0, known = 0.0;
  for (int j = 0; j < k; ++j) {
    const double a = alpha[j] * shards.weight[j];
    sr[j] = a;
    arrived += a;
    if (!shards.seen[j]) continue;
    sh[k + j] = se[2 * k + j] = a;
    known += a;
  }
  std::vector<double> br, bh, be;
  multiply(base, sr, &br);
  multiply(base, sh, &bh);
  multiply(base, se, &be);
  const double rr = dot(sr, br), rh = dot(sr, bh), re = dot(sr, be);
  const double hh = dot(sh, bh), he = dot(sh, be), ee = dot(se, be);
  for (int j = 0; j < k; ++j) {
    if (alpha[j] <= 0.0) continue;
    const double a = alpha[j] * shards.weight[j];
    const int at[kParts] = {-1, j, -1, k + j, -1, 2 * k + j, 3 * k, 3 * k + 1};
    PartGram g;
    for (int p = 0; p < kParts; ++p) {
      for (int q = 0; q < kParts; ++q) {
        if (at[p] >= 0 && at[q] >= 0) {
          g[p][q] = base[static_cast<std::size_t>(at[p]) * n + at[q]];
        }
      }
      if (at[p] < 0) continue;
      g[kR][p] = g[p][kR] = br[at[p]];
      g[kH][p] = g[p][kH] = bh[at[p]];
      g[kE][p] = g[p][kE] = be[at[p]];
    }
    g[kR][kR] = rr, g[kH][kH] = hh, g[kE][kE] = ee;
    g[kR][kH] = g[kH][kR] = rh;
    g[kR][kE] = g[kE][kR] = re;
    g[kH][kE] = g[kE][kH] = he;
    add_left_out(g, left_out_weights(a, shards.seen[j] != 0, arrived, known), tile);
  }
  const double scale = 1.0 / std::max(1, left);
  for (auto& row : tile->left_gram) {
    for (double& value : row) value *= scale;
  }
  for (double& value : tile->left_target) value *= scale;
  tile->left_norm *= scale;
}

void project(const double* base, const Shards& shards, const std::vector<double>& v,
             Tile* tile) {
  const int n = shards.vectors(), k = shards.size();
  std::vector<double> bv(static_cast<std::size_t>(n) * kSpan, 0.0);
  for (int i = 0; i < n; ++i) {
    double* out = &bv[static_cast<std::size_t>(i) * kSpan];
    for (int j = 0; j < n; ++j) {
      const double b = base[static_cast<std::size_t>(i) * n + j];
      for (int s = 0; s < kSpan; ++s) out[s] += b * v[j * kSpan + s];
    }
  }
  for (int i = 0; i < n; ++i) {
    for (int s = 0; s < kSpan; ++s) {
      if (v[i * kSpan + s] == 0.0) continue;
      for (int t = 0; t < kSpan; ++t) {
        tile->gram[s][t] += v[i * kSpan + s] * bv[i * kSpan + t];
      }
    }
  }
  for (int i = 0; i < k; ++i) {
    const double a = shards.alpha[i] * shards.weight[i];
    for (int s = 0; s < kSpan; ++s) tile->cross[s] += a * bv[i * kSpan + s];
    for (int j = 0; j < k; ++j) {
      tile->total_norm += a * shards.alpha[j] * shards.weight[j] *
                          base[static_cast<std::size_t>(i) * n + j];
    }
  }
}

}  // namespace

std::vector<double> Shards::solid() const {
  std::vector<double> out(alpha.size(), 0.0);
  bool any = false;
  for (std::size_t j = 0; j < alpha.size(); ++j) {
    if (alpha[j] >= 1.0) out[j] = 1.0, any = true;
  }
  return any ? out : alpha;
}

std::vector<double> span_weights(const Shards& shards) {
  const std::vector<double> alpha = shards.solid();
  const int k = shards.size(), n = shards.vectors();
  std::vector<double> v(static_cast<std::size_t>(n) * kSpan, 0.0);
  const auto at = [&](int row, int column) -> double& {
    return v[static_cast<std::size_t>(row) * kSpan + column];
  };
  double arrived = 0.0, missing = 0.0, known = 0.0, unseen = 0.0, part = 0.0;
  std::vector<double> a(k), d(k);
  for (int j = 0; j < k; ++j) {
    a[j] = alpha[j] * shards.weight[j];
    d[j] = (1.0 - shards.alpha[j]) * shards.weight[j];
    arrived += a[j];
    missing += d[j];
    (shards.seen[j] ? known : unseen) += shards.seen[j] ? a[j] : d[j];
    if (alpha[j] > 0.0 && d[j] > 0.0) part += d[j];
  }
  for (int j = 0; j < k && arrived > 0.0; ++j) at(j, 0) = a[j] / arrived;
  at(3 * k, 1) = at(3 * k + 1, 2) = 1.0;
  for (int i = 0; i < 2; ++i) {
    const int column = 3 + 2 * i, first = (i + 1) * k;
    for (int j = 0; j < k; ++j) {
      if (shards.seen[j] && missing > 0.0) at(first + j, column) = d[j] / missing;
      if (shards.seen[j] && known > 0.0) at(first + j, column + 1) = a[j] / known;
    }
    for (int j = 0; j < k; ++j) {
      if (missing > 0.0) at(j, column) += at(j, 0) * (unseen / missing);
      if (known <= 0.0) at(j, column + 1) = at(j, 0);
    }
  }
  for (int j = 0; j < k; ++j) {  // memory of the whole less what is here
    const double here = shards.alpha[j] * shards.weight[j];
    if (alpha[j] > 0.0 || here <= 0.0 || d[j] <= 0.0 || !shards.seen[j]) continue;
    at(k + j, 7) = here / missing;
    at(j, 7) = -here / missing;
  }
  for (int j = 0; j < k && part > 0.0; ++j) {
    const bool partial = alpha[j] > 0.0 && d[j] > 0.0;
    if (partial && shards.seen[j]) {  // memory of the whole less what has arrived
      at(k + j, 3) += a[j] / missing;
      at(j, 3) -= a[j] / missing;
    }
    at(j, 7) = (partial ? d[j] / missing : 0.0) - at(j, 0) * (part / missing);
  }
  return v;
}

Problem make_problem(const std::vector<double>& base, int tiles, const Shards& shards,
                     const std::vector<double>& weights) {
  Problem problem;
  problem.shards = shards.size();
  problem.known = 0.0;
  int present = 0;
  const std::vector<double> solid = shards.solid();
  for (int j = 0; j < shards.size(); ++j) {
    const double d = (1.0 - shards.alpha[j]) * shards.weight[j];
    problem.rho += d;
    if (shards.alpha[j] < 1.0) ++problem.count, problem.whole += shards.weight[j];
    if (solid[j] > 0.0) ++present;
    if (shards.seen[j]) {
      problem.staleness += d * shards.age[j];
      problem.known += d;
    }
    if (shards.alpha[j] > 0.0) problem.partial += d;
  }
  if (problem.rho > 0.0) {
    problem.staleness /= problem.rho;
    problem.known /= problem.rho;
    problem.partial /= problem.rho;
  } else {
    problem.staleness = problem.partial = 0.0;
    problem.known = 1.0;
  }
  problem.left_count = present >= 2 ? present : 0;
  problem.tiles.resize(tiles);
  const std::size_t n = shards.vectors();
  for (int t = 0; t < tiles; ++t) {
    const double* mine = base.data() + t * n * n;
    project(mine, shards, weights, &problem.tiles[t]);
    if (problem.left_count > 0) {
      left_out(mine, shards, problem.left_count, &problem.tiles[t]);
    }
  }
  return problem;
}

double squared_error(const Coefficients& c, const Matrix& gram,
                     const Coefficients& target, double norm) {
  double sum = norm;
  for (int i = 0; i < kSpan; ++i) {
    double row = -2.0 * target[i];
    for (int j = 0; j < kSpan; ++j) row += gram[i][j] * c[j];
    sum += c[i] * row;
  }
  return std::max(sum, 0.0);
}

double energy(const Problem& problem) {
  double sum = 0.0;
  for (const Tile& tile : problem.tiles) sum += tile.gram[0][0] + tile.gram[2][2];
  return sum;
}

double estimate_norm(const Problem& problem, const std::vector<Coefficients>& c) {
  double sum = 0.0;
  const double rho = problem.rho;
  for (std::size_t t = 0; t < problem.tiles.size(); ++t) {
    const Tile& tile = problem.tiles[t];
    sum += tile.total_norm;
    for (int i = 0; i < kSpan; ++i) {
      double row = 2.0 * rho * tile.cross[i];
      for (int j = 0; j < kSpan; ++j) row += rho * rho * tile.gram[i][j] * c[t][j];
      sum += c[t][i] * row;
    }
  }
  return std::max(sum, 0.0);
}

double wrong(const Problem& problem, const std::vector<Coefficients>& c,
             const Label& label) {
  double error = 0.0;
  for (std::size_t t = 0; t < problem.tiles.size(); ++t) {
    error += squared_error(c[t], problem.tiles[t].gram, label.target[t], label.norm[t]);
  }
  return problem.rho * problem.rho * error;
}

double true_error(const Problem& problem, const std::vector<Coefficients>& c,
                  const Label& label) {
  double whole = 0.0;
  const double rho = problem.rho;
  for (std::size_t t = 0; t < problem.tiles.size(); ++t) {
    const Tile& tile = problem.tiles[t];
    whole += tile.total_norm + 2.0 * rho * label.cross[t] + rho * rho * label.norm[t];
  }
  const double error = wrong(problem, c, label);
  if (error == 0.0) return 0.0;
  return whole > 0.0 ? error / whole : std::numeric_limits<double>::infinity();
}

}  // namespace codedgrad::decoder
