#include "ops/cpu/sums.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ops/cpu/clones.h"
#include "ops/cpu/round.h"

namespace codedgrad::ops {
namespace {

CODEDGRAD_CLONES void add(const float* a, const float* b, float* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

CODEDGRAD_CLONES void add(const double* a, const double* b, double* out,
                          std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

// The deepest stack that the program needs.
std::size_t depth_of(const std::vector<int>& program, std::size_t inputs) {
  std::size_t depth = 0, deepest = 0;
  for (int token : program) {
    if (token == kAdd || token == kAddRounded) {
      if (depth < 2) throw std::invalid_argument("tree_sum: kAdd on a short stack");
      --depth;
    } else {
      if (token < 0 || static_cast<std::size_t>(token) >= inputs) {
        throw std::invalid_argument("tree_sum: no such input");
      }
      deepest = std::max(deepest, ++depth);
    }
  }
  if (depth != 1) throw std::invalid_argument("tree_sum: must leave one vector");
  return deepest;
}

}  // namespace

template <typename T>
void tree_sum(const std::vector<int>& program, const std::vector<const T*>& inputs,
              T* out, T* out2, std::size_t count, Wire wire) {
  const std::size_t depth = depth_of(program, inputs.size());
  std::vector<T> scratch(depth * kBlock);
  std::vector<const T*> stack(depth);
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t n = std::min(kBlock, count - begin);
    std::size_t top = 0;
    for (std::size_t i = 0; i < program.size(); ++i) {
      if (program[i] >= 0) {
        stack[top++] = inputs[program[i]] + begin;
        continue;
      }
      --top;
      const bool last = i + 1 == program.size();
      T* sum = last ? out + begin : scratch.data() + (top - 1) * kBlock;
      add(stack[top - 1], stack[top], sum, n);
      if (program[i] == kAddRounded) round_to(wire, sum, n);
      stack[top - 1] = sum;
    }
    if (stack[0] != out + begin) std::memcpy(out + begin, stack[0], n * sizeof(T));
    if (out2 != nullptr) std::memcpy(out2 + begin, out + begin, n * sizeof(T));
  }
}

template void tree_sum(const std::vector<int>&, const std::vector<const float*>&,
                       float*, float*, std::size_t, Wire);
template void tree_sum(const std::vector<int>&, const std::vector<const double*>&,
                       double*, double*, std::size_t, Wire);

}  // namespace codedgrad::ops
