#pragma once

#include "ops/cpu/half.h"

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half x) {
  return codedgrad::ops::widen(codedgrad::ops::Float16{x.bits});
}
inline __half __float2half_rn(float x) {
  return {codedgrad::ops::narrow<codedgrad::ops::Float16>(x).bits};
}
