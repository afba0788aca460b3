// A loop shared among threads, for kernels whose result does not depend on who did
// what.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace codedgrad::ops {

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
  std::vector<std::thread> others;
  others.reserve(wanted - 1);
  try {
    while (others.size() + 1 < wanted) others.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: those that are there do it.
  }
  run();
  for (std::thread& other : others) other.join();
}

}  // namespace codedgrad::ops
