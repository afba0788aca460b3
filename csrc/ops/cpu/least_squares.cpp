#include "ops/cpu/least_squares.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace codedgrad::ops {
namespace {

// In four sums, so that additions overlap.
double dot(const double* a, const double* b, std::size_t n) {
  double sum[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::size_t l = 0; l < 4; ++l) sum[l] += a[i + l] * b[i + l];
  }
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void add_multiple(double factor, const double* from, double* to, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

std::vector<double> checked(std::vector<double> matrix, std::size_t rows,
                            std::size_t cols) {
  if (matrix.size() != rows * cols) {
    throw std::invalid_argument("least squares: the matrix must be rows x cols");
  }
  return matrix;
}

std::vector<double> transposed(const std::vector<double>& matrix, std::size_t rows,
                               std::size_t cols) {
  std::vector<double> out(matrix.size());
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t c = 0; c < cols; ++c) out[c * rows + i] = matrix[i * cols + c];
  }
  return out;
}

}  // namespace

PivotedQr::PivotedQr(std::vector<double> matrix, std::size_t rows, std::size_t cols)
    : qr_(checked(std::move(matrix), rows, cols)),
      order_(cols),
      rows_(rows),
      cols_(cols) {
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  double largest = 0.0;
  for (std::size_t s = 0; s < std::min(rows, cols); ++s) {
    const std::size_t n = rows - s;
    std::size_t pivot = s;
    double best = -1.0;
    for (std::size_t c = s; c < cols; ++c) {
      const double* column = &qr_[c * rows + s];
      const double norm = dot(column, column, n);
      if (norm > best) best = norm, pivot = c;
    }
    const double norm = std::sqrt(std::max(best, 0.0));
    largest = std::max(largest, norm);
    if (norm <= 1e-12 * largest || norm == 0.0) break;
    if (pivot != s) {
      std::swap_ranges(&qr_[s * rows], &qr_[s * rows] + rows, &qr_[pivot * rows]);
      std::swap(order_[s], order_[pivot]);
    }
    double* v = &qr_[s * rows + s];
    const double r = v[0] > 0 ? -norm : norm;
    v[0] -= r;
    diagonal_.push_back(r);
    scale_.push_back(-2.0 / dot(v, v, n));
    for (std::size_t c = s + 1; c < cols; ++c) {
      double* x = &qr_[c * rows + s];
      add_multiple(scale_[s] * dot(v, x, n), v, x, n);
    }
  }
}

// x = Q x: the reflections, last first.
void PivotedQr::apply_q(double* x) const {
  for (std::size_t s = rank(); s-- > 0;) {
    const double* v = &qr_[s * rows_ + s];
    add_multiple(scale_[s] * dot(v, x + s, rows_ - s), v, x + s, rows_ - s);
  }
}

std::vector<double> PivotedQr::solve(std::vector<double> b) const {
  for (std::size_t s = 0; s < rank(); ++s) {
    const double* v = &qr_[s * rows_ + s];
    add_multiple(scale_[s] * dot(v, &b[s], rows_ - s), v, &b[s], rows_ - s);
  }
  std::vector<double> x(cols_, 0.0);
  for (std::size_t i = rank(); i-- > 0;) {
    double value = b[i];
    for (std::size_t c = i + 1; c < rank(); ++c) {
      value -= qr_[c * rows_ + i] * x[order_[c]];
    }
    x[order_[i]] = value / diagonal_[i];
  }
  return x;
}

std::vector<double> PivotedQr::solve_transposed(const std::vector<double>& b) const {
  std::vector<double> x(rows_, 0.0);
  for (std::size_t c = 0; c < rank(); ++c) {
    x[c] = (b[order_[c]] - dot(&qr_[c * rows_], x.data(), c)) / diagonal_[c];
  }
  apply_q(x.data());
  return x;
}

std::vector<double> PivotedQr::left_null() const {
  std::vector<double> basis(rows_ * (rows_ - rank()), 0.0);
  for (std::size_t j = 0; j < rows_ - rank(); ++j) {
    double* column = basis.data() + j * rows_;
    column[rank() + j] = 1.0;
    apply_q(column);
  }
  return basis;
}

RowSubsets::RowSubsets(std::vector<double> matrix, std::size_t rows, std::size_t cols)
    : matrix_(checked(std::move(matrix), rows, cols)),
      rows_(rows),
      cols_(cols),
      whole_(transposed(matrix_, rows, cols), rows, cols),
      null_(whole_.left_null()) {}

std::vector<double> RowSubsets::lacking(const std::vector<double>& a) const {
  std::vector<double> out(cols_, 1.0);
  for (std::size_t i = 0; i < rows_; ++i) {
    if (a[i] != 0.0) add_multiple(-a[i], &matrix_[i * cols_], out.data(), cols_);
  }
  return out;
}

std::vector<double> RowSubsets::from_missing(
    const std::vector<std::size_t>& missing) const {
  const std::size_t m = missing.size(), free = rows_ - whole_.rank();
  std::vector<double> at_missing(m * free);
  for (std::size_t j = 0; j < free; ++j) {
    for (std::size_t i = 0; i < m; ++i) {
      at_missing[j * m + i] = null_[j * rows_ + missing[i]];
    }
  }
  const PivotedQr system(std::move(at_missing), m, free);
  std::vector<double> a(rows_, 0.0);
  // The later passes take off what rounding has left of the first.
  for (int pass = 0; pass < 3; ++pass) {
    std::vector<double> change = whole_.solve_transposed(lacking(a));
    std::vector<double> rest(m);
    for (std::size_t i = 0; i < m; ++i) rest[i] = -change[missing[i]];
    const std::vector<double> z = system.solve(std::move(rest));
    for (std::size_t j = 0; j < free; ++j) {
      add_multiple(z[j], &null_[j * rows_], change.data(), rows_);
    }
    add_multiple(1.0, change.data(), a.data(), rows_);
    for (std::size_t i : missing) a[i] = 0.0;
  }
  return a;
}

std::vector<double> RowSubsets::from_present(const std::vector<bool>& in_set) const {
  std::vector<double> columns;
  for (std::size_t i = 0; i < rows_; ++i) {
    const double* row = matrix_.data() + i * cols_;
    if (in_set[i]) columns.insert(columns.end(), row, row + cols_);
  }
  const std::size_t size = columns.size() / cols_;
  const PivotedQr system(std::move(columns), cols_, size);
  const std::vector<double> found = system.solve(std::vector<double>(cols_, 1.0));
  std::vector<double> a(rows_, 0.0);
  for (std::size_t i = 0, next = 0; i < rows_; ++i) {
    if (in_set[i]) a[i] = found[next++];
  }
  return a;
}

std::vector<double> RowSubsets::solve(const std::vector<bool>& in_set,
                                      double* residual) const {
  auto largest = [this](const std::vector<double>& a) {
    double out = 0.0;
    for (double x : lacking(a)) out = std::max(out, std::abs(x));
    return out;
  };
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < rows_; ++i) {
    if (!in_set[i]) missing.push_back(i);
  }
  if (missing.size() <= rows_ - whole_.rank()) {
    std::vector<double> a = from_missing(missing);
    *residual = largest(a);
    if (*residual < 5e-9) return a;
  }
  std::vector<double> a = from_present(in_set);
  *residual = largest(a);
  return a;
}

}  // namespace codedgrad::ops
