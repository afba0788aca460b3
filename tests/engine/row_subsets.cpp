// Reads rows, cols, sets, a matrix and the sets from stdin; writes weights and residual
// of each set to stdout. For test_row_subsets.py.
#include <cstdio>
#include <vector>

#include "ops/cpu/least_squares.h"

int main() {
  double sizes[3];
  if (std::fread(sizes, sizeof(double), 3, stdin) != 3) return 1;
  const auto rows = static_cast<std::size_t>(sizes[0]);
  const auto cols = static_cast<std::size_t>(sizes[1]);
  std::vector<double> matrix(rows * cols), wanted(rows);
  if (std::fread(matrix.data(), sizeof(double), matrix.size(), stdin) !=
      matrix.size()) {
    return 1;
  }
  const codedgrad::ops::RowSubsets subsets(matrix, rows, cols);
  for (int set = 0; set < static_cast<int>(sizes[2]); ++set) {
    if (std::fread(wanted.data(), sizeof(double), rows, stdin) != rows) return 1;
    double residual = -1.0;
    const auto weights = subsets.solve({wanted.begin(), wanted.end()}, &residual);
    std::fwrite(weights.data(), sizeof(double), rows, stdout);
    std::fwrite(&residual, sizeof(double), 1, stdout);
  }
  return 0;
}
