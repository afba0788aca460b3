#include "decoder/learned.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace codedgrad::decoder {
namespace {

constexpr double kSlow = 0.97, kFast = 0.8;
constexpr int kGateLabels = 10;
constexpr double kGateRatio = 1.03;
constexpr double kAged = 3.0;  // steps: memory that is older is old
constexpr double kFarthest = 6.0, kFloor = 1e-12;
constexpr int kPerTile = kSpan * kSpan + kSpan;
constexpr std::size_t kState = 3 * kPerTile + 2 * kCandidates + 4 + 5;

using Row = std::array<double, kCandidates>;

// log(e_k / min_k e), at most kFarthest, into feature `i` of one tile.
void relative(const Row& errors, int i, Features* out) {
  Row logs;
  for (int k = 0; k < kCandidates; ++k) logs[k] = std::log(errors[k] + kFloor);
  const double least = *std::min_element(logs.begin(), logs.end());
  for (int k = 0; k < kCandidates; ++k) {
    (*out)[k][i] = std::min(logs[k] - least, kFarthest);
  }
}

}  // namespace

Learned::Learned(int tiles, std::shared_ptr<const Network> network)
    : tiles_(tiles),
      network_(std::move(network)),
      squares_(tiles),
      slow_(tiles, Row{}),
      fast_(tiles, Row{}) {}

Chosen Learned::choose(const Problem& problem) const {
  Chosen chosen;
  chosen.candidates = squares_.candidates(problem);
  const auto f = features(problem, chosen.candidates);
  const auto context = contexts(problem);
  chosen.mixed.assign(tiles_, Coefficients{});
  chosen.t = chosen.s = 0.0;
  for (int i = 0; i < tiles_; ++i) {
    const Choice choice = decoder::choose(*network_, f[i], context[i], labels());
    for (int k = 0; k < kCandidates; ++k) {
      for (int s = 0; s < kSpan; ++s) {
        chosen.mixed[i][s] += choice.w[k] * chosen.candidates[i][k][s];
      }
    }
    chosen.t += choice.t / tiles_;
    chosen.s += choice.s / tiles_;
  }
  const int safe = scarce(problem);
  const int k = safe >= 0 ? safe : gate();
  chosen.c = chosen.mixed;
  for (int i = 0; k >= 0 && i < tiles_; ++i) chosen.c[i] = chosen.candidates[i][k];
  chosen.predicted = predictor_.predict(problem, chosen.c, chosen.t, chosen.s);
  return chosen;
}

void Learned::lean(const Problem& problem, double most, Chosen* chosen) const {
  constexpr int kMomentum = 2;
  const Coefficients& average = kFixedCoefficients[kMomentum];
  const std::vector<Coefficients> first = chosen->c;
  chosen->excess = noise_.excess(problem, first);
  for (double by : {0.25, 0.5, 1.0}) {
    if (chosen->excess.share <= most) break;
    std::vector<Coefficients> c = first;
    for (Coefficients& tile : c) {
      for (int s = 0; s < kSpan; ++s) tile[s] += by * (average[s] - tile[s]);
    }
    const Excess leaning = noise_.excess(problem, c);
    if (!(leaning.share < chosen->excess.share)) continue;
    chosen->excess = leaning;
    chosen->c = std::move(c);
    chosen->predicted = predictor_.predict(problem, chosen->c, chosen->t, chosen->s);
  }
}

int Learned::scarce(const Problem& problem) const {
  const bool fresh = problem.staleness <= kAged && problem.known > 0.5;
  const double wanted = std::max<double>(kSpan, 2.0 * problem.staleness);
  if (fresh || static_cast<double>(labels()) >= wanted) return -1;
  constexpr int kRescale = 1, kSaga = 5, kSagaMean = 7;
  if (problem.left_count == 0 || problem.known <= 0.5) return kRescale;
  const auto error = [&problem](int k) {
    double sum = 0.0;
    for (const Tile& tile : problem.tiles) {
      sum += squared_error(kFixedCoefficients[k], tile.left_gram, tile.left_target,
                           tile.left_norm);
    }
    return sum;
  };
  return std::min(error(kSaga), error(kSagaMean)) < error(kRescale) ? kSaga : kRescale;
}

int Learned::gate() const {
  if (labels() < kGateLabels) return -1;
  Row pooled{};
  for (const Row& tile : slow_) {
    for (int k = 0; k < kCandidates; ++k) pooled[k] += tile[k];
  }
  const auto best = std::min_element(pooled.begin(), pooled.end());
  if (mixture_ <= kGateRatio * *best) return -1;
  return static_cast<int>(best - pooled.begin());
}

void Learned::learn(const Problem& problem, const Chosen& chosen, const Label& label) {
  predictor_.learn(problem, chosen.c, label, chosen.t, chosen.s);
  noise_.learn(chosen.excess, wrong(problem, chosen.c, label));
  const double s = energy(problem);
  if (s <= 0.0) return;
  const double scale = 1.0 / s;
  double mixed = 0.0;
  for (int i = 0; i < tiles_; ++i) {
    const Matrix& gram = problem.tiles[i].gram;
    mixed += squared_error(chosen.mixed[i], gram, label.target[i], label.norm[i]);
    for (int k = 0; k < kCandidates; ++k) {
      const double e = scale * squared_error(chosen.candidates[i][k], gram,
                                             label.target[i], label.norm[i]);
      slow_[i][k] = kSlow * slow_[i][k] + e;
      fast_[i][k] = kFast * fast_[i][k] + e;
    }
  }
  mixture_ = kSlow * mixture_ + scale * mixed;
  slow_weight_ = kSlow * slow_weight_ + 1.0;
  fast_weight_ = kFast * fast_weight_ + 1.0;
  squares_.learn(problem, label);
}

void Learned::teach(const std::vector<double>& base, int tiles, const Shards& shards,
                    const std::vector<int>& erased) {
  const int k = shards.size(), n = shards.vectors();
  std::vector<char> gone(k, 0);
  for (int j : erased) gone[j] = 1;
  Shards rest;
  std::vector<int> from, at;  // of shards; of vectors
  double whole = 0.0;
  for (int j = 0; j < k; ++j) {
    if (shards.alpha[j] <= 0.0) continue;
    from.push_back(j);
    whole += shards.alpha[j] * shards.weight[j];
  }
  for (int j : from) {
    rest.alpha.push_back(gone[j] ? 0.0 : 1.0);
    rest.weight.push_back(shards.alpha[j] * shards.weight[j] / whole);
    rest.seen.push_back(shards.seen[j]);
    rest.age.push_back(shards.age[j]);
  }
  for (int group = 0; group < 3; ++group) {
    for (int j : from) at.push_back(group * k + j);
  }
  at.push_back(3 * k);
  at.push_back(3 * k + 1);
  const int m = static_cast<int>(at.size());
  std::vector<double> sub(static_cast<std::size_t>(tiles) * m * m);
  for (int t = 0; t < tiles; ++t) {
    for (int a = 0; a < m; ++a) {
      for (int b = 0; b < m; ++b) {
        sub[(static_cast<std::size_t>(t) * m + a) * m + b] =
            base[(static_cast<std::size_t>(t) * n + at[a]) * n + at[b]];
      }
    }
  }
  const std::vector<double> v = span_weights(rest);
  const Problem problem = make_problem(sub, tiles, rest, v);
  if (!(problem.rho > 0.0 && problem.rho < 1.0)) return;
  Label label;
  for (int t = 0; t < tiles; ++t) {
    const double* mine = &sub[static_cast<std::size_t>(t) * m * m];
    Coefficients target{};
    double norm = 0.0, cross = 0.0;
    for (int a = 0; a < m; ++a) {
      double bx = 0.0;  // <u_a, x>, x = sum of the erased's weight rows / rho
      for (std::size_t j = 0; j < from.size(); ++j) {
        if (gone[from[j]]) bx += mine[a * m + j] * rest.weight[j] / problem.rho;
      }
      for (int s = 0; s < kSpan; ++s) target[s] += v[a * kSpan + s] * bx;
      if (a >= static_cast<int>(from.size())) continue;
      if (gone[from[a]]) {
        norm += rest.weight[a] / problem.rho * bx;
      } else {
        cross += rest.weight[a] * bx;
      }
    }
    label.target.push_back(target);
    label.norm.push_back(norm);
    label.cross.push_back(cross);
  }
  learn(problem, choose(problem), label);
}

std::vector<Features> Learned::features(const Problem& problem,
                                        const Choices& c) const {
  const double s = energy(problem);
  const double scale = s > 0.0 ? 1.0 / s : 1.0;
  Errors tables[3] = {slow_, fast_, Errors(tiles_, Row{})};
  const double weights[2] = {std::max(slow_weight_, 1.0), std::max(fast_weight_, 1.0)};
  for (int i = 0; i < tiles_; ++i) {
    const Tile& tile = problem.tiles[i];
    for (int k = 0; k < kCandidates; ++k) {
      tables[0][i][k] /= weights[0];
      tables[1][i][k] /= weights[1];
      tables[2][i][k] = scale * squared_error(c[i][k], tile.left_gram, tile.left_target,
                                              tile.left_norm);
    }
  }
  std::vector<Features> out(tiles_, Features{});
  const bool known[3] = {labels() > 0, labels() > 0, problem.left_count > 0};
  for (int table = 0; table < 3; ++table) {
    if (!known[table]) continue;
    Row pooled{};
    for (const Row& tile : tables[table]) {
      for (int k = 0; k < kCandidates; ++k) pooled[k] += tile[k];
    }
    for (int i = 0; i < tiles_; ++i) {
      relative(tables[table][i], 2 * table, &out[i]);
      relative(pooled, 2 * table + 1, &out[i]);
    }
  }
  return out;
}

std::vector<Context> Learned::contexts(const Problem& problem) const {
  const double n = static_cast<double>(labels());
  const Context same = {
      1.0 / (1.0 + n),
      std::log1p(std::min(n, 200.0)) / 5.0,
      std::log(problem.count > 0 ? problem.count + 1e-9 : 1.0),
      std::log(static_cast<double>(problem.shards)) / 4.0,
      problem.rho,
      std::log1p(problem.staleness) / 3.0,
      problem.known,
      problem.partial,
      1.0 / (1.0 + problem.left_count),
  };
  std::vector<Context> out(tiles_, same);
  for (int i = 0; i < tiles_; ++i) {
    const Tile& tile = problem.tiles[i];
    const Matrix& g = tile.gram;
    const auto cosine = [&g](int a, int b) {
      const double da = std::sqrt(g[a][a]) + 1e-150, db = std::sqrt(g[b][b]) + 1e-150;
      return g[a][b] / da / db;
    };
    const double ratio = std::log((tile.left_norm + 1e-300) / (g[0][0] + 1e-300));
    out[i][9] = cosine(0, 2);
    out[i][10] = cosine(3, 4);
    out[i][11] = cosine(5, 6);
    out[i][12] = problem.left_count > 0 ? std::clamp(ratio, -4.0, 6.0) / 4.0 : 0.0;
  }
  return out;
}

std::vector<double> Learned::state() const {
  std::vector<double> out;
  for (int kind = 0; kind < 3; ++kind) {
    Equations sum;
    for (const Equations& e : *squares_.kind(kind)) sum.add(1, 1, e.gram, e.target);
    for (const auto& row : sum.gram) out.insert(out.end(), row.begin(), row.end());
    out.insert(out.end(), sum.target.begin(), sum.target.end());
  }
  for (const Errors* errors : {&slow_, &fast_}) {
    Row pooled{};
    for (const Row& tile : *errors) {
      for (int k = 0; k < kCandidates; ++k) pooled[k] += tile[k];
    }
    out.insert(out.end(), pooled.begin(), pooled.end());
  }
  out.insert(out.end(),
             {slow_weight_, fast_weight_, mixture_, static_cast<double>(labels())});
  const auto predictor = predictor_.state();
  out.insert(out.end(), predictor.begin(), predictor.end());
  return out;
}

void Learned::restore(const std::vector<double>& state) {
  const bool finite = std::all_of(state.begin(), state.end(),
                                  [](double v) { return std::isfinite(v); });
  if (state.size() != kState || !finite) {
    throw std::invalid_argument("a decoder's state must be " + std::to_string(kState) +
                                " finite numbers, got " + std::to_string(state.size()));
  }
  const double* at = state.data();
  const double share = 1.0 / tiles_;
  for (int kind = 0; kind < 3; ++kind) {
    Equations sum;
    for (auto& row : sum.gram) {
      for (double& value : row) value = share * *at++;
    }
    for (double& value : sum.target) value = share * *at++;
    for (Equations& e : *squares_.kind(kind)) e = sum;
  }
  for (Errors* errors : {&slow_, &fast_}) {
    Row row;
    for (double& value : row) value = share * *at++;
    for (Row& tile : *errors) tile = row;
  }
  slow_weight_ = *at++, fast_weight_ = *at++, mixture_ = *at++;
  squares_.set_labels(static_cast<long>(*at++));
  std::array<double, 5> predictor;
  std::copy(at, at + 5, predictor.begin());
  predictor_.restore(predictor);
}

}  // namespace codedgrad::decoder
