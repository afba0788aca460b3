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
// Within one machine. In place of a large message comes its address, 8 bytes, and the
// receiver reads it there, if it has found before that it can: a trial gives the
// address (in `bytes`) of a number (in `tag`), and is answered by kReadable.
constexpr std::uint32_t kAddressMark = 0x31616763;  // "cga1": a message, by its address
constexpr std::uint32_t kTakenMark = 0x31746763;  // "cgt1": the oldest such one is read
constexpr std::uint32_t kTrialMark = 0x31796763;  // "cgy1"
constexpr std::uint32_t kReadableMark = 0x31726763;  // "cgr1"
// A memory that could be read may be closed later. The receiver says so, gets the bytes
// in the stream, between the messages that were sent meanwhile, and no more addresses.
constexpr std::uint32_t kUnreadMark = 0x31756763;  // "cgu1": the oldest cannot be read
constexpr std::uint32_t kBytesMark = 0x31626763;   // "cgb1": so these are its bytes

// Throws before anybody takes memory for a frame that cannot be one.
inline void check_frame(const FrameHead& head, int source) {
  bool good = false;
  switch (head.mark) {
    case kEndMark:
    case kTakenMark:
    case kReadableMark:
    case kUnreadMark:
      good = head.tag == 0 && head.bytes == 0;
      break;
    case kTrialMark:
      good = head.tag >= 0;
      break;
    case kMessageMark:
    case kAddressMark:
    case kBytesMark:
      good = head.tag >= 0 && head.bytes <= kMostFrameBytes;
      break;
  }
  if (good) return;
  throw std::runtime_error(
      "worker " + std::to_string(source) + " sent what is no message (mark " +
      std::to_string(head.mark) + ", tag " + std::to_string(head.tag) + ", " +
      std::to_string(head.bytes) + " bytes); do all workers run the same version?");
}

}  // namespace codedgrad
