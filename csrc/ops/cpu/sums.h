// Sums of several vectors in one streaming pass. Raw pointers only: these kernels
// know no workers, codes or steps. T is float or double.
#pragma once

#include <cstddef>
#include <vector>

#include "ops/wire.h"

namespace codedgrad::ops {

// A program in postfix order: a value >= 0 pushes inputs[value]; kAdd replaces the
// two topmost vectors by their sum, kAddRounded by their sum rounded to `wire`. It
// must leave exactly one vector.
constexpr int kAdd = -1;
constexpr int kAddRounded = -2;

// out[i] = the program's value at i, for i < count; also into out2 unless null.
// Every element is added in the program's order, so the bits depend on it alone.
// Throws std::invalid_argument when the program is not well formed, or rounds doubles.
template <typename T>
void tree_sum(const std::vector<int>& program, const std::vector<const T*>& inputs,
              T* out, T* out2, std::size_t count, Wire wire = Wire::kAsIs);

}  // namespace codedgrad::ops
