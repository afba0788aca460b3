// How a message travels in a stream: a head, then its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace codedgrad {

struct FrameHead {
  std::uint32_t mark = 0;
  std::int32_t tag = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(FrameHead) == 16, "the head is sent as it lies in memory");

constexpr std::uint32_t kMessageMark = 0x316d6763;  // "cgm1"
constexpr std::uint32_t kEndMark = 0x31656763;      // "cge1": the peer sends no more
constexpr std::uint64_t kMostFrameBytes = std::uint64_t{2} << 30;

// Throws before anybody takes memory for a frame that cannot be one.
inline void check_frame(const FrameHead& head, int source) {
  const bool ends = head.mark == kEndMark && head.tag == 0 && head.bytes == 0;
  const bool message =
      head.mark == kMessageMark && head.tag >= 0 && head.bytes <= kMostFrameBytes;
  if (ends || message) return;
  throw std::runtime_error(
      "worker " + std::to_string(source) + " sent what is no message (mark " +
      std::to_string(head.mark) + ", tag " + std::to_string(head.tag) + ", " +
      std::to_string(head.bytes) + " bytes); do all workers run the same version?");
}

}  // namespace codedgrad
