// Small dense linear algebra in double, for decoding weights.
#pragma once

#include <cstddef>
#include <vector>

namespace codedgrad::ops {

// A P = Q R for A [rows, cols] in column-major order, by Householder reflections with
// column pivoting; columns of less than 1e-12 of the largest add nothing.
class PivotedQr {
 public:
  PivotedQr(std::vector<double> matrix, std::size_t rows, std::size_t cols);

  std::size_t rank() const { return diagonal_.size(); }
  // argmin_x ||A x - b||_2; 0 for the columns that add nothing.
  std::vector<double> solve(std::vector<double> b) const;
  // The x of least norm with A^T x = b, for b in the row space of A.
  std::vector<double> solve_transposed(const std::vector<double>& b) const;
  // An orthonormal basis of the x with A^T x = 0: [rows, rows - rank], column-major.
  std::vector<double> left_null() const;

 private:
  void apply_q(double* x) const;
  std::vector<double> qr_;  // reflectors below, the upper triangle of R above
  std::vector<double> scale_, diagonal_;
  std::vector<std::size_t> order_;
  std::size_t rows_, cols_;
};

// a = argmin ||1 - B_S^T a||_2 for sets S of B's rows, B [rows, cols] in row-major
// order. What B alone decides is factored once, O(rows^2 cols); where `rows - rank` or
// fewer rows are missing, a system of that size remains (codedgrad/codes/dual.py has
// the derivation). Otherwise, and where rounding spoils it, B_S is factored.
class RowSubsets {
 public:
  RowSubsets(std::vector<double> matrix, std::size_t rows, std::size_t cols);

  // Returns a [rows], 0 outside S; *residual = max_i |1 - (B^T a)_i|.
  std::vector<double> solve(const std::vector<bool>& in_set, double* residual) const;

 private:
  std::vector<double> lacking(const std::vector<double>& a) const;  // 1 - B^T a
  std::vector<double> from_missing(const std::vector<std::size_t>& missing) const;
  std::vector<double> from_present(const std::vector<bool>& in_set) const;

  std::vector<double> matrix_;
  std::size_t rows_, cols_;
  PivotedQr whole_;
  std::vector<double> null_;  // [rows, rows - rank], column-major
};

}  // namespace codedgrad::ops
