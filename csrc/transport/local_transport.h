// Several ranks inside one process, for tests that need no MPI launcher or run under
// the thread sanitizer. Messages become visible after a random delay, in order per
// pair, and a receive takes as long again.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "transport/transport.h"

namespace codedgrad {

// A send completes only when the receiver has copied the message, as in MPI's
// rendezvous protocol.
struct LocalMessage {
  Envelope envelope;
  const void* data = nullptr;
  std::uint64_t id = 0;
  std::chrono::steady_clock::time_point visible;
};

class LocalHub {
 public:
  LocalHub(int size, int max_delay_us, std::uint64_t seed, int max_tag = (1 << 30) - 1)
      : size(size),
        max_tag(max_tag),
        inbox(size),
        sent(size),
        max_delay_us_(max_delay_us),
        random_(seed) {}

  // Both are called under the mutex.
  std::chrono::steady_clock::time_point soon() {
    auto when = std::chrono::steady_clock::now();
    if (max_delay_us_ > 0) {
      when += std::chrono::microseconds(random_() % (max_delay_us_ + 1));
    }
    return when;
  }
  std::chrono::steady_clock::time_point visible_from(int source, int dest) {
    auto when = soon();
    const auto& queue = inbox[dest][source];
    if (!queue.empty() && queue.back().visible > when) when = queue.back().visible;
    return when;
  }

  const int size, max_tag;
  std::mutex mutex;  // guards everything below
  std::vector<std::map<int, std::deque<LocalMessage>>> inbox;  // by dest, by source
  std::vector<std::vector<std::uint64_t>> sent;                // completed, by source

 private:
  const int max_delay_us_;
  std::mt19937_64 random_;
};

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub,
                                                int rank);

}  // namespace codedgrad
