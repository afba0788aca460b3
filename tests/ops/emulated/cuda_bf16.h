#pragma once

#include "ops/cpu/half.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  return codedgrad::ops::widen(codedgrad::ops::BFloat16{x.bits});
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {codedgrad::ops::narrow<codedgrad::ops::BFloat16>(x).bits};
}
