// A loop shared among threads, for kernels whose result does not depend on who did
// what.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>

namespace codedgrad::ops {

// Calls body() here and, at the same time, on up to `others` more threads; returns when
// all of them have. They are kept: one that has just been made begins on the core of
// its maker, and stays there for milliseconds. While another call shares its work the
// body runs here alone. It must not throw.
void share(int others, const std::function<void()>& body);

// Calls body(i) once for every i < count, on up to `threads` threads including this
// one. The body must not throw.
template <typename Body>
void parallel_for(std::size_t count, int threads, const Body& body) {
  std::atomic<std::size_t> next{0};
  auto run = [&] {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      body(i);
    }
  };
  const std::size_t wanted = std::min(static_cast<std::size_t>(std::max(threads, 1)),
                                      std::max(count, std::size_t{1}));
  if (wanted == 1) {
    run();
  } else {
    share(static_cast<int>(wanted) - 1, run);
  }
}

}  // namespace codedgrad::ops
