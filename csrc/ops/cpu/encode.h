// A piece of a row in one streaming pass: scaled gradients, plus what was summed
// before. Raw pointers only; T is float or double.
#pragma once

#include <cstddef>
#include <vector>

#include "ops/piece.h"
#include "ops/wire.h"

namespace codedgrad::ops {

// With the values of the pieces, widened to T, one after another as x, and R the
// rounding to `wire`,
//
//   out = R(... R(R(weight * x) + sums[last]) ... + sums[0])
//
// in that order and without fused multiply-add, so the bits are those of one
// operation after the other. True when R(weight * x), and with rounding every R, is
// finite everywhere: one that is not has been written all the same. `out` may be one of
// the sums, and overlaps no other input. Throws std::invalid_argument when doubles are
// to be rounded. `streamed`: `out` is written past the caches; for what is read much
// later.
template <typename T>
bool encode(const std::vector<Piece>& leaf, T weight, const std::vector<const T*>& sums,
            T* out, Wire wire, bool streamed);

// out[i] = now[i] - before[i], and 0 where nothing changed, also for infinities.
// From is float, double or std::int64_t.
template <typename From, typename T>
void change(const From* now, const From* before, T* out, std::size_t count);

// The inverse: now[i] = before[i] + change[i], rounded to the nearest for integers.
template <typename To, typename T>
void apply(const To* before, const T* change, To* now, std::size_t count);

}  // namespace codedgrad::ops
