#include "ops/cpu/least_squares.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace codedgrad::ops {
namespace {

double dot(const double* a, const double* b, std::size_t n) {
  return std::inner_product(a, a + n, b, 0.0);
}

}  // namespace

std::vector<double> solve_for_ones(const std::vector<double>& matrix, std::size_t rows,
                                   std::size_t cols, double* residual) {
  if (matrix.size() != rows * cols) {
    throw std::invalid_argument("solve_for_ones: the matrix must be rows x cols");
  }
  std::vector<double> q = matrix;
  std::vector<double> rhs(rows, 1.0);
  std::vector<double> diagonal;
  std::vector<std::size_t> order(cols);
  std::iota(order.begin(), order.end(), std::size_t{0});
  double largest = 0.0;
  const std::size_t steps = std::min(rows, cols);
  for (std::size_t s = 0; s < steps; ++s) {
    std::size_t pivot = s;
    double best = -1.0;
    for (std::size_t c = s; c < cols; ++c) {
      const double* column = &q[c * rows + s];
      const double norm = dot(column, column, rows - s);
      if (norm > best) best = norm, pivot = c;
    }
    const double norm = std::sqrt(std::max(best, 0.0));
    largest = std::max(largest, norm);
    if (norm <= 1e-12 * largest || norm == 0.0) break;
    if (pivot != s) {
      std::swap_ranges(&q[s * rows], &q[s * rows] + rows, &q[pivot * rows]);
      std::swap(order[s], order[pivot]);
    }
    double* v = &q[s * rows + s];
    const std::size_t n = rows - s;
    const double r = v[0] > 0 ? -norm : norm;
    diagonal.push_back(r);
    v[0] -= r;
    const double scale = 2.0 / dot(v, v, n);
    auto reflect = [&](double* x) {
      const double f = scale * dot(v, x, n);
      for (std::size_t i = 0; i < n; ++i) x[i] -= f * v[i];
    };
    for (std::size_t c = s + 1; c < cols; ++c) reflect(&q[c * rows + s]);
    reflect(&rhs[s]);
  }
  // Back substitution; the upper triangle of R stands above the reflectors.
  std::vector<double> weights(cols, 0.0);
  for (std::size_t i = diagonal.size(); i-- > 0;) {
    double value = rhs[i];
    for (std::size_t c = i + 1; c < diagonal.size(); ++c) {
      value -= q[c * rows + i] * weights[order[c]];
    }
    weights[order[i]] = value / diagonal[i];
  }
  if (residual != nullptr) {
    *residual = 0.0;
    for (std::size_t i = 0; i < rows; ++i) {
      double sum = 1.0;
      for (std::size_t c = 0; c < cols; ++c) sum -= matrix[c * rows + i] * weights[c];
      *residual = std::max(*residual, std::abs(sum));
    }
  }
  return weights;
}

}  // namespace codedgrad::ops
