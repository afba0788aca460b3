#include "decoder/noise.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace codedgrad::decoder {
namespace {

constexpr double kKeep = 0.9;       // what each step keeps of the spreads' sums
constexpr double kFresh = 3.0;      // steps: memory that is older says nothing of noise
constexpr double kPrior = 4.0;      // labels that kappa = 1 counts for
constexpr double kKeepLabel = 0.9;  // what each label keeps of kappa's sums
constexpr double kWorst = 8.0;      // the most that one label can say
constexpr double kFlat = 1e-4;      // less spread than that is rounding

// Returns the variance of the batch's mean, from vectors with these inner products.
template <typename Product>
double variance(const std::vector<int>& rows, const std::vector<double>& weight,
                const Product& product) {
  double own = 0.0, mean = 0.0, whole = 0.0;
  for (int i : rows) {
    own += weight[i] * product(i, i);
    whole += weight[i];
    for (int j : rows) mean += weight[i] * weight[j] * product(i, j);
  }
  const auto count = static_cast<double>(rows.size());
  return std::max(0.0, (own - mean / whole) / (count - 1.0));
}

}  // namespace

void Noise::look(std::int64_t step, const std::vector<double>& base,
                 const Shards& shards, const std::vector<double>& weights,
                 double scale) {
  const int k = shards.size(), n = shards.vectors();
  const std::size_t square = static_cast<std::size_t>(n) * n;
  std::vector<int> complete, fresh;
  here_ = 0.0;
  now_.clear();
  current_ = {};
  for (int j = 0; j < k; ++j) {
    for (int s = 0; s < kSpan; ++s) current_[s] += weights[j * kSpan + s];
    if (shards.alpha[j] < 1.0) continue;
    complete.push_back(j);
    here_ += shards.weight[j];
    if (shards.seen[j] && shards.age[j] <= kFresh) fresh.push_back(j);
  }
  if (complete.size() < 2 || !(scale > 0.0)) return;
  scale_ = scale;
  each_ = here_ / static_cast<double>(complete.size());
  double energy = 0.0, sum = 0.0, spread = 0.0, in_time = 0.0;
  const bool both = fresh.size() >= 2 && step != step_;
  for (std::size_t t = 0; t < base.size() / square; ++t) {
    const double* b = base.data() + t * square;
    const auto rows = [&](int i, int j) { return b[i * n + j]; };
    const auto changes = [&](int i, int j) {  // since the shard's last gradient
      return b[i * n + j] - b[i * n + k + j] - b[(k + i) * n + j] +
             b[(k + i) * n + k + j];
    };
    now_.push_back(variance(complete, shards.weight, rows));
    sum += now_.back();
    for (int j : complete) energy += shards.weight[j] * rows(j, j);
    if (!both) continue;
    const auto last = [&](int i, int j) { return b[(k + i) * n + k + j]; };
    spread += 0.5 * (variance(fresh, shards.weight, rows) +
                     variance(fresh, shards.weight, last));
    in_time += 0.5 * variance(fresh, shards.weight, changes);
  }
  if (!(sum > kFlat * energy)) now_.clear();
  if (!both) return;
  step_ = step;
  spread_ = kKeep * spread_ + spread / (scale * scale);
  in_time_ = kKeep * in_time_ + in_time / (scale * scale);
  steps_ = kKeep * steps_ + 1.0;
}

double Noise::bias() const {
  if (!(in_time_ > 0.0)) return std::numeric_limits<double>::infinity();
  return std::max(1.0, spread_ / in_time_);
}

Excess Noise::excess(const Problem& problem, const std::vector<Coefficients>& c) const {
  Excess out;
  const double rho = problem.rho;
  if (now_.empty() || problem.left_count == 0 || !(rho > 0.0)) return out;
  if (!(spread_ > 0.0)) return out;
  const double sum = std::accumulate(now_.begin(), now_.end(), 0.0);
  const double biased = bias();
  out.noise = scale_ * scale_ * spread_ / steps_ / biased;
  double chance = 0.0, offset = 0.0, credit = 0.0;
  for (std::size_t t = 0; t < now_.size(); ++t) {
    const Tile& tile = problem.tiles[t];
    double current = 0.0;
    for (int s = 0; s < kSpan; ++s) current += current_[s] * c[t][s];
    const double noise = out.noise * now_[t] / sum, square = current * current;
    chance += noise * (1.0 / rho + square / here_);
    offset += squared_error(c[t], tile.left_gram, tile.left_target, tile.left_norm) -
              now_[t] / biased * (1.0 / each_ + square / (here_ - each_));
    credit += 2.0 * rho * now_[t] * (1.0 - current);
  }
  out.expected = rho * rho * std::max(0.0, chance + offset);
  out.credit = credit / sum;
  out.share = out.share_of(kappa() * out.expected);
  out.unbiased = out.share_of(rho * rho * chance);
  return out;
}

void Noise::learn(const Excess& excess, double wrong) {
  if (!(excess.expected > 0.0) || !std::isfinite(wrong)) return;
  true_ = kPrior + kKeepLabel * (true_ - kPrior) +
          std::min(kWorst, wrong / excess.expected);
  weight_ = kPrior + kKeepLabel * (weight_ - kPrior) + 1.0;
}

}  // namespace codedgrad::decoder
