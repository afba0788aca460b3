#include "decoder/network.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace codedgrad::decoder {
namespace {

constexpr double kStrongest = 2.0;
constexpr double kExceeded = 0.03, kGain = 0.15, kKeep = 0.95, kRemember = 0.95;
constexpr double kFloor = 1e-12;

double softplus(double x) { return x > 30.0 ? x : std::log1p(std::exp(x)); }

// Returns u, the size by which errors are measured.
double unit_of(const Problem& problem) {
  double sum = 0.0, known = 0.0;
  for (const Tile& tile : problem.tiles) {
    sum += problem.left_count > 0 ? tile.left_norm : tile.gram[0][0];
    known += tile.gram[5][5];
  }
  const double share = problem.rho * problem.whole;
  const double u = share * sum / std::max(1, problem.count);
  return known > 0.0 ? std::sqrt(u) * std::sqrt(share * known) : u;
}

double left_log(const Problem& problem, const std::vector<Coefficients>& c) {
  if (problem.left_count == 0) return 0.0;
  double error = 0.0, whole = 0.0;
  for (std::size_t t = 0; t < problem.tiles.size(); ++t) {
    const Tile& tile = problem.tiles[t];
    error += squared_error(c[t], tile.left_gram, tile.left_target, tile.left_norm);
    whole += tile.left_norm;
  }
  return whole > 0.0 ? std::log(error / whole + kFloor) : 0.0;
}

}  // namespace

void Network::check() const {
  const struct {
    const char* name;
    const std::vector<double>* values;
    std::size_t size;
  } all[] = {{"w1", &w1, kHidden * kContext},
             {"b1", &b1, kHidden},
             {"w2", &w2, kOutputs * kHidden},
             {"b2", &b2, kOutputs}};
  for (const auto& a : all) {
    const bool finite = std::all_of(a.values->begin(), a.values->end(),
                                    [](double v) { return std::isfinite(v); });
    if (a.values->size() != a.size || !finite) {
      throw std::invalid_argument(std::string("decoder network: ") + a.name +
                                  " must be " + std::to_string(a.size) +
                                  " finite numbers, got " +
                                  std::to_string(a.values->size()));
    }
  }
}

Choice choose(const Network& network, const Features& f, const Context& context,
              long labels) {
  std::array<double, kHidden> hidden;
  for (int h = 0; h < kHidden; ++h) {
    double sum = network.b1[h];
    for (int i = 0; i < kContext; ++i) {
      sum += network.w1[h * kContext + i] * context[i];
    }
    hidden[h] = std::tanh(sum);
  }
  std::array<double, kOutputs> out;
  for (int o = 0; o < kOutputs; ++o) {
    out[o] = network.b2[o];
    for (int h = 0; h < kHidden; ++h) {
      out[o] += network.w2[o * kHidden + h] * hidden[h];
    }
  }
  Choice choice;
  const double fade = 10.0 / (10.0 + static_cast<double>(labels));
  double largest = -1e300, sum = 0.0;
  for (int k = 0; k < kCandidates; ++k) {
    double score = kStrongest * std::tanh(out[kFeatures + k]) * fade;
    for (int i = 0; i < kFeatures; ++i) score -= softplus(out[i]) * f[k][i];
    choice.w[k] = score;
    largest = std::max(largest, score);
  }
  for (double& w : choice.w) sum += w = std::exp(w - largest);
  for (double& w : choice.w) w /= sum;
  choice.t = 1.0 / (1.0 + std::exp(-out[kOutputs - 2]));
  choice.s = 2.0 * std::tanh(out[kOutputs - 1]);
  return choice;
}

double Predictor::kappa() const { return std::clamp(true_ / raw_, 0.1, 10.0); }

double Predictor::raw_error(const Problem& problem, const std::vector<Coefficients>& c,
                            double t, double s) const {
  const double unit = unit_of(problem);
  if (unit <= 0.0) {  // nothing to measure by
    return problem.rho < 1.0 && estimate_norm(problem, c) == 0.0 ? 0.0 : 1.0;
  }
  double left = left_log(problem, c);
  const double past = weight_ > 0.0 ? past_ / weight_ : left;
  if (problem.left_count == 0) left = past;
  const double log_error = std::min(30.0, t * left + (1.0 - t) * past + s);
  const double e = unit * std::exp(log_error);
  const double whole = e + estimate_norm(problem, c);
  return whole > 0.0 ? e / whole : 0.0;
}

Prediction Predictor::predict(const Problem& problem,
                              const std::vector<Coefficients>& c, double t,
                              double s) const {
  const double mean = kappa() * raw_error(problem, c, t, s);
  return {mean, mean * q_};
}

void Predictor::learn(const Problem& problem, const std::vector<Coefficients>& c,
                      const Label& label, double t, double s) {
  const double raw = raw_error(problem, c, t, s);
  const double error = true_error(problem, c, label);
  if (raw > 0.0 && std::isfinite(error)) {
    const bool above = error > kappa() * raw * q_;
    q_ =
        std::clamp(q_ * std::exp(kGain * ((above ? 1.0 : 0.0) - kExceeded)), 1.0, 30.0);
    if (weight_ == 0.0) true_ *= raw, raw_ *= raw;
    true_ = kRemember * true_ + error;
    raw_ = kRemember * raw_ + raw;
  }
  const double unit = unit_of(problem);
  if (unit <= 0.0) return;
  double absolute = 0.0;
  for (std::size_t i = 0; i < problem.tiles.size(); ++i) {
    absolute +=
        squared_error(c[i], problem.tiles[i].gram, label.target[i], label.norm[i]);
  }
  absolute *= problem.rho * problem.rho;
  past_ = kKeep * past_ + std::log(absolute / unit + kFloor);
  weight_ = kKeep * weight_ + 1.0;
}

}  // namespace codedgrad::decoder
