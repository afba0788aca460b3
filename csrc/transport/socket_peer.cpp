#include "transport/socket_peer.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "transport/open_sockets.h"

namespace codedgrad {
namespace {

constexpr std::size_t kBufferBytes = 64 << 10;
constexpr int kKernelBytes = 4 << 20;  // the kernel gives what it allows
constexpr int kPiecesPerCall = 64;
constexpr int kEndMs = 1000;
constexpr std::chrono::seconds kDropS{1};  // to hear the last words
// From this size on reading at the address is faster than the stream.
constexpr std::size_t kByAddressBytes = 256 << 10;
// TCP: a machine that is silent for so long is gone; a stopped process is not silent,
// because its kernel answers.
constexpr int kIdleS = 5, kBetweenS = 3, kProbes = 4;
constexpr unsigned kSilentMs = 15000;

void set(int fd, int level, int option, int value) {
  // Each is of use, none is needed; a UNIX socket refuses those of TCP.
  ::setsockopt(fd, level, option, &value, sizeof value);
}

// Whether the frame is one of the caller's messages, not of the connection's own.
bool carries(const FrameHead& head) {
  return head.mark == kMessageMark || head.mark == kAddressMark ||
         head.mark == kBytesMark;
}

bool is_tcp(int fd) {
  int domain = AF_UNIX;
  socklen_t size = sizeof domain;
  ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
  return domain != AF_UNIX;
}

}  // namespace

SocketPeer::SocketPeer(int rank, int fd)
    : rank_(rank), fd_(fd), tcp_(is_tcp(fd)), buffer_(kBufferBytes) {
  close_in_children(fd_);
  ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
  set(fd_, SOL_SOCKET, SO_SNDBUF, kKernelBytes);
  set(fd_, SOL_SOCKET, SO_RCVBUF, kKernelBytes);
  set(fd_, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd_, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd_, IPPROTO_TCP, TCP_KEEPIDLE, kIdleS);
  set(fd_, IPPROTO_TCP, TCP_KEEPINTVL, kBetweenS);
  set(fd_, IPPROTO_TCP, TCP_KEEPCNT, kProbes);
  if (!tcp_) try_memory();
}

SocketPeer::~SocketPeer() { close_socket(fd_); }

// ---- sending ----

void SocketPeer::send(int tag, const void* data, std::size_t bytes, std::uint64_t id,
                      Ids* done) {
  if (deaf_) {
    done->push_back(id);
    return;
  }
  const char* from = static_cast<const char*>(data);
  if (reads_here_ && bytes >= kByAddressBytes) {
    const auto address = reinterpret_cast<std::uint64_t>(data);
    out_.push_back({{kAddressMark, tag, bytes}, nullptr, 8, 0, id, address});
    out_.back().data = reinterpret_cast<const char*>(&out_.back().address);
  } else {
    out_.push_back({{kMessageMark, tag, bytes}, from, bytes, 0, id, 0});
  }
  if (out_.size() == 1) flush(done);
}

void SocketPeer::post(const FrameHead& head, Ids* done) {
  if (deaf_) return;
  out_.push_back({head, nullptr, 0, 0, 0, 0});
  if (out_.size() == 1) flush(done);
}

void SocketPeer::flush(Ids* done) {
  while (!out_.empty()) {
    iovec pieces[kPiecesPerCall];
    int count = 0;
    for (Outgoing& frame : out_) {
      if (count + 2 > kPiecesPerCall) break;
      constexpr std::size_t kHead = sizeof(FrameHead);
      if (frame.sent < kHead) {
        pieces[count++] = {reinterpret_cast<char*>(&frame.head) + frame.sent,
                           kHead - frame.sent};
      }
      const std::size_t skip = std::max(frame.sent, kHead) - kHead;
      if (frame.bytes > skip) {
        pieces[count++] = {const_cast<char*>(frame.data) + skip, frame.bytes - skip};
      }
    }
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = static_cast<std::size_t>(count);
    const ssize_t sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return not_sent(done);
    advance(static_cast<std::size_t>(sent), done);
  }
}

void SocketPeer::not_sent(Ids* done) {
  switch (errno) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
      return;  // until the kernel has room
    case EPIPE:
    case ECONNRESET:
      break;  // the reading finds out whether it has said that it ends
    default:
      problem_ = std::strerror(errno);
      return cut(done);
  }
  drop_queue(done);
}

void SocketPeer::advance(std::size_t count, Ids* done) {
  while (!out_.empty()) {
    Outgoing& frame = out_.front();
    const std::size_t rest = sizeof(FrameHead) + frame.bytes - frame.sent;
    if (count < rest) {
      frame.sent += count;
      return;
    }
    count -= rest;
    if (frame.head.mark == kAddressMark) {
      const auto* data = reinterpret_cast<const char*>(frame.address);
      unread_.push_back({data, frame.head.bytes, frame.head.tag, frame.id});
    } else if (carries(frame.head)) {
      done->push_back(frame.id);
    }
    out_.pop_front();
  }
}

void SocketPeer::drop_queue(Ids* done) {
  deaf_ = true;
  for (const Unread& message : unread_) done->push_back(message.id);
  unread_.clear();
  for (const Outgoing& frame : out_) {
    if (carries(frame.head)) done->push_back(frame.id);
  }
  out_.clear();
}

void SocketPeer::cut(Ids* done) {
  readable_ = false;
  at_end_ = true;
  ::shutdown(fd_, SHUT_RDWR);
  drop_queue(done);
}

void SocketPeer::drop() {
  dropped_ = true;
  cut_by_ = std::chrono::steady_clock::now() + kDropS;
}

void SocketPeer::cut_when_due(Ids* done) {
  if (!dropped_ || at_end_) return;
  const bool heard = out_.empty() && unread_.empty();
  if (heard || std::chrono::steady_clock::now() >= cut_by_) cut(done);
}

// The kernel itself gives up an unanswered send only after a quarter of an hour, and
// with TCP_USER_TIMEOUT it would give up stopped processes, too, whose kernels answer.
void SocketPeer::check_machine(Ids* done) {
  if (!tcp_ || at_end_) return;
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd_, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return;
  const bool unanswered = info.tcpi_unacked > 0 && info.tcpi_retransmits > 1;
  if (!unanswered && info.tcpi_probes <= 2) return;
  if (info.tcpi_last_ack_recv < kSilentMs) return;
  problem_ = "its machine has not answered for " +
             std::to_string(info.tcpi_last_ack_recv / 1000) + " s";
  cut(done);
}

void SocketPeer::end() {
  if (deaf_ || !out_.empty() || !unread_.empty()) return;
  const FrameHead head{kEndMark, 0, 0};
  const char* bytes = reinterpret_cast<const char*>(&head);
  std::size_t sent = 0;
  while (sent < sizeof head) {
    const ssize_t count =
        ::send(fd_, bytes + sent, sizeof head - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) {
      sent += static_cast<std::size_t>(count);
      continue;
    }
    pollfd room{fd_, POLLOUT, 0};
    if (errno != EAGAIN && errno != EINTR) return;
    if (::poll(&room, 1, kEndMs) == 0) return;
  }
}

// ---- receiving ----

void SocketPeer::read(Ids* done) {
  if (copying_ || at_end_) return;
  if (into_ != nullptr) {
    drain(done);
  } else if (!has_head_) {
    fill(done);
  }
}

bool SocketPeer::announce(Envelope* envelope, Ids* done) {
  if (into_ != nullptr) return false;
  if (!has_head_ && readable_ && !at_end_) fill(done);
  if (!has_head_) return false;
  *envelope = {rank_, head_.tag, static_cast<std::size_t>(head_.bytes)};
  return true;
}

std::size_t SocketPeer::forget_receives() {
  const std::size_t open = owed_.size() + (into_ != nullptr || copying_ ? 1 : 0);
  owed_.clear();
  into_ = nullptr;
  copying_ = false;
  return open;
}

void SocketPeer::receive(void* into, std::uint64_t id, Ids* done) {
  has_head_ = false;
  into_ = static_cast<char*>(into);
  left_ = head_.bytes;
  id_ = id;
  if (address_ != 0) {
    copying_ = true;
    return copy(done);
  }
  follow(done);
}

void SocketPeer::follow(Ids* done) {
  const std::size_t here = std::min(left_, have_ - at_);
  if (here > 0) std::memcpy(into_, buffer_.data() + at_, here);
  at_ += here;
  into_ += here;
  left_ -= here;
  if (left_ > 0) {
    if (readable_) drain(done);
    return;
  }
  into_ = nullptr;
  done->push_back(id_);
  parse(done);
}

void SocketPeer::parse(Ids* done) {
  while (!has_head_ && into_ == nullptr && !ended_ && have_ - at_ >= sizeof head_) {
    std::memcpy(&head_, buffer_.data() + at_, sizeof head_);
    try {
      check_frame(head_, rank_);
      if (head_.mark == kBytesMark) check_owed();
    } catch (const std::runtime_error&) {
      ended_ = true;  // nothing that follows can be understood
      drop_queue(done);
      throw;
    }
    if (head_.mark == kAddressMark) {
      if (have_ - at_ < sizeof head_ + sizeof address_) return;
      std::memcpy(&address_, buffer_.data() + at_ + sizeof head_, sizeof address_);
      at_ += sizeof address_;
    }
    at_ += sizeof head_;
    if (!heard(done)) has_head_ = true;  // else hearing may have found another
  }
}

bool SocketPeer::heard(Ids* done) {
  switch (head_.mark) {
    case kEndMark:
      ended_ = true;
      drop_queue(done);
      return true;
    case kTakenMark:
      if (unread_.empty()) return true;
      done->push_back(unread_.front().id);
      unread_.pop_front();
      return true;
    case kUnreadMark:
      send_bytes(done);
      return true;
    case kBytesMark:
      bytes_come(done);
      return true;
    case kReadableMark:
      reads_here_ = true;
      return true;
    case kTrialMark:
      if (can_read(head_.bytes, static_cast<std::uint32_t>(head_.tag))) {
        post({kReadableMark, 0, 0}, done);
      }
      return true;
    default:
      return false;
  }
}

bool SocketPeer::took(long count) {
  if (count > 0) return true;
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
    readable_ = errno == EINTR;
    return false;
  }
  if (count < 0) problem_ = std::strerror(errno);
  readable_ = false;
  at_end_ = true;
  return false;
}

void SocketPeer::fill(Ids* done) {
  std::memmove(buffer_.data(), buffer_.data() + at_, have_ - at_);
  have_ -= at_;
  at_ = 0;
  const std::size_t room = buffer_.size() - have_;
  const ssize_t count = ::recv(fd_, buffer_.data() + have_, room, 0);
  if (!took(count)) {
    if (at_end_) cut(done);
    return;
  }
  have_ += static_cast<std::size_t>(count);
  readable_ = static_cast<std::size_t>(count) == room;
  parse(done);
}

// What follows the message in the stream comes into the buffer, which is empty here.
void SocketPeer::drain(Ids* done) {
  at_ = have_ = 0;
  while (left_ > 0) {
    iovec places[2] = {{into_, left_}, {buffer_.data(), buffer_.size()}};
    const ssize_t count = ::readv(fd_, places, 2);
    if (!took(count)) {
      if (at_end_) cut(done);
      return;
    }
    const std::size_t direct = std::min(static_cast<std::size_t>(count), left_);
    into_ += direct;
    left_ -= direct;
    have_ = static_cast<std::size_t>(count) - direct;
  }
  into_ = nullptr;
  done->push_back(id_);
  parse(done);
}

}  // namespace codedgrad
