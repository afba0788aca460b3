// Large messages within one machine, which the receiver reads in the sender's memory.
// Where it was allowed once and is refused later, as by PR_SET_DUMPABLE or a policy of
// the system's, the sender lives all the same: it is asked for the bytes.
#include <poll.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "transport/other_memory.h"
#include "transport/socket_peer.h"

namespace codedgrad {
namespace {

constexpr std::size_t kCopyBytes = 16 << 20;  // at a time

}  // namespace

// The number is random, so that no other process has it at the same address.
void SocketPeer::try_memory() {
  process_ = process_behind(fd_);
  trial_ = std::make_unique<std::uint64_t>(std::random_device{}() >> 1);
  Ids none;
  post({kTrialMark, static_cast<std::int32_t>(*trial_),
        reinterpret_cast<std::uint64_t>(trial_.get())},
       &none);
}

bool SocketPeer::can_read(std::uint64_t address, std::uint32_t number) const {
  std::uint64_t found = 0;
  return process_ > 0 &&
         read_memory(process_, address, &found, sizeof found) == sizeof found &&
         found == number;
}

void SocketPeer::copy(Ids* done) {
  if (!copying_ || at_end_) return;
  const long count =
      left_ == 0 ? 0
                 : read_memory(process_, address_, into_, std::min(left_, kCopyBytes));
  // A sender that has died is no exception: its connection ends then.
  if (count < 0 || (count == 0 && left_ > 0)) return ask_for_bytes(done);
  address_ += static_cast<std::uint64_t>(count);
  into_ += count;
  left_ -= static_cast<std::size_t>(count);
  if (left_ > 0) return;
  if (hung_up()) return cut(done);  // so these bytes may be anything
  copying_ = false;
  into_ = nullptr;
  address_ = 0;
  done->push_back(id_);
  post({kTakenMark, 0, 0}, done);
  parse(done);
}

// Also where something has come before that and was not read yet.
bool SocketPeer::hung_up() const {
  pollfd look{fd_, POLLRDHUP, 0};
  return ::poll(&look, 1, 0) > 0 && (look.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

// The messages behind it in the stream are announced meanwhile.
void SocketPeer::ask_for_bytes(Ids* done) {
  const auto bytes = static_cast<std::size_t>(head_.bytes);
  owed_.push_back({into_ - (bytes - left_), bytes, head_.tag, id_});
  copying_ = false;
  into_ = nullptr;
  address_ = 0;
  post({kUnreadMark, 0, 0}, done);
  parse(done);
}

void SocketPeer::send_bytes(Ids* done) {
  reads_here_ = false;
  if (unread_.empty() || deaf_) return;
  const Unread message = unread_.front();
  unread_.pop_front();
  out_.push_back({{kBytesMark, message.tag, message.bytes},
                  message.data,
                  message.bytes,
                  0,
                  message.id,
                  0});
  if (out_.size() == 1) flush(done);
}

void SocketPeer::check_owed() const {
  const Owed want = owed_.empty() ? Owed{} : owed_.front();
  if (want.into != nullptr && want.tag == head_.tag && want.bytes == head_.bytes) {
    return;
  }
  throw std::runtime_error("worker " + std::to_string(rank_) + " sent the " +
                           std::to_string(head_.bytes) +
                           " bytes of a message that could not be read in its memory, "
                           "and " +
                           std::to_string(want.bytes) +
                           " were expected; do all workers run the same version?");
}

void SocketPeer::bytes_come(Ids* done) {
  const Owed message = owed_.front();
  owed_.pop_front();
  into_ = message.into;
  left_ = message.bytes;
  id_ = message.id;
  follow(done);
}

}  // namespace codedgrad
