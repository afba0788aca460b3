// Small dense least squares in double, for decoding weights.
#pragma once

#include <cstddef>
#include <vector>

namespace codedgrad::ops {

// a = argmin ||1 - A a||_2 for A [rows, cols] in column-major order, by Householder QR
// with column pivoting; columns that add nothing get weight 0.
// Returns a [cols]; *residual (if given) = max_i |1 - (A a)_i|.
std::vector<double> solve_for_ones(const std::vector<double>& matrix, std::size_t rows,
                                   std::size_t cols, double* residual);

}  // namespace codedgrad::ops
