#pragma once

#include <chrono>

namespace codedgrad {

inline double now_s() {  // monotonic
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace codedgrad
