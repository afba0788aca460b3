// A run of a row as the table of what lies in it: gradients of any type, one after the
// other, without gaps. Kernels of all devices read the same table.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CODEDGRAD_EVERYWHERE __host__ __device__
#else
#define CODEDGRAD_EVERYWHERE
#endif

namespace codedgrad::ops {

// The types of values, with the numbers that Python knows them by.
enum class Type : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Piece {
  std::uint64_t data = 0;          // address of the first value; 0: zeros
  std::uint64_t end_and_type = 0;  // four times the place in the run where it ends

  CODEDGRAD_EVERYWHERE std::uint64_t end() const { return end_and_type >> 2; }
  CODEDGRAD_EVERYWHERE Type type() const { return static_cast<Type>(end_and_type & 3); }
};

inline Piece piece_of(std::uint64_t data, std::uint64_t end, Type type) {
  return {data, end << 2 | static_cast<std::uint64_t>(type)};
}

}  // namespace codedgrad::ops
