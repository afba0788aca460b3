// Messages in a 16-bit type. Rows and results are fp32 in memory: they are packed where
// they are sent and unpacked where they arrive.
#pragma once

#include <cstddef>

#include "ops/wire.h"

namespace codedgrad {

using ops::Wire;

// Bytes of one packed element.
constexpr std::size_t kPackedBytes = 2;

// Writes to[i] = from[i], rounded to `wire` (to the nearest, ties to even), which must
// not be kAsIs.
void pack(const char* from, char* to, std::size_t count, Wire wire);

// Writes to[i] = from[i], which is exact.
void unpack(const char* from, char* to, std::size_t count, Wire wire);

}  // namespace codedgrad
