// Messages in a 16-bit type. In memory rows and results stay fp32: they are packed
// where they are sent and unpacked where they arrive.
#pragma once

#include <cstddef>

#include "ops/wire.h"

namespace codedgrad {

using ops::Wire;

// Bytes of one packed element.
constexpr std::size_t kPackedBytes = 2;

// to[i] = from[i] rounded to `wire` (to nearest, ties to even); not kAsIs.
void pack(const char* from, char* to, std::size_t count, Wire wire);

// to[i] = from[i], exact.
void unpack(const char* from, char* to, std::size_t count, Wire wire);

}  // namespace codedgrad
