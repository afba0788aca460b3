#include "transport/socket_transport.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>

#include "transport/open_sockets.h"
#include "transport/socket_peer.h"

namespace codedgrad {
namespace {

constexpr int kEventsPerLook = 64;
constexpr std::chrono::seconds kBetweenChecks{2};

// Messages of a rank to itself: they are copied when they are received.
struct OwnMessage {
  int tag = 0;
  const void* data = nullptr;
  std::size_t bytes = 0;
  std::uint64_t id = 0;
};

class SocketTransport final : public Transport {
 public:
  SocketTransport(int rank, std::vector<int> fds, int most)
      : rank_(rank), size_(static_cast<int>(fds.size())), max_tag_(most) {
    if (rank < 0 || rank >= size_ || fds[rank] >= 0) {
      throw std::runtime_error("rank " + std::to_string(rank) + " has no place among " +
                               std::to_string(size_) + " sockets");
    }
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ < 0) {
      throw std::runtime_error(std::string("epoll_create1 failed: ") +
                               std::strerror(errno));
    }
    close_in_children(epoll_);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) {
        peers_.emplace_back();
        writes_.push_back(false);
        continue;
      }
      peers_.push_back(std::make_unique<SocketPeer>(peer, fds[peer]));
      watch(*peers_[peer], EPOLL_CTL_ADD);
      writes_.push_back(peers_[peer]->queues());
    }
    told_.resize(peers_.size(), false);
  }

  ~SocketTransport() override {
    for (const auto& peer : peers_) {
      if (peer) peer->end();
    }
    peers_.clear();
    close_socket(epoll_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int max_tag() const override { return max_tag_; }

  void send(int dest, int tag, const void* data, std::size_t bytes,
            std::uint64_t id) override {
    if (dest < 0 || dest >= size_ || tag < 0 || tag > max_tag_) {
      throw std::runtime_error("there is no rank " + std::to_string(dest) +
                               " or no tag " + std::to_string(tag));
    }
    if (bytes > kMostFrameBytes) {
      throw std::runtime_error("a message of " + std::to_string(bytes) +
                               " bytes is longer than the 2 GiB of a frame; use "
                               "smaller buckets (bucket_mb)");
    }
    ++pending_;
    if (dest == rank_) {
      own_.push_back({tag, data, bytes, id});
      return;
    }
    peers_[dest]->send(tag, data, bytes, id, &done_);
    watch_writes(*peers_[dest]);
  }

  bool probe(Envelope* envelope) override {
    if (announced(envelope)) return true;
    look();
    if (announced(envelope)) return true;
    if (!done_.empty()) return false;  // they are heard of first
    for (const auto& peer : peers_) {
      if (!peer || !peer->gone() || told_[peer->rank()]) continue;
      told_[peer->rank()] = true;
      pending_ -= peer->forget_receives();
      throw PeerGone(peer->rank(), "worker " + std::to_string(peer->rank()) +
                                       " is gone: its process died, or its machine "
                                       "did (" +
                                       peer->problem() + ")");
    }
    return false;
  }

  void receive(void* into, std::uint64_t id) override {
    ++pending_;
    if (taken_ != rank_) {
      peers_[taken_]->receive(into, id, &done_);
      watch_writes(*peers_[taken_]);
      return;
    }
    const OwnMessage message = own_.front();
    own_.pop_front();
    if (message.bytes > 0) std::memcpy(into, message.data, message.bytes);
    done_.push_back(message.id);
    done_.push_back(id);
  }

  void poll(std::vector<std::uint64_t>* done) override {
    if (!looked_) look();
    looked_ = false;
    pending_ -= done_.size();
    done->insert(done->end(), done_.begin(), done_.end());
    done_.clear();
  }

  std::size_t pending() const override { return pending_; }

  void drop(int rank) override {
    if (rank >= 0 && rank < size_ && peers_[rank]) peers_[rank]->drop();
  }

 private:
  // Takes a message of whom it is the turn.
  bool announced(Envelope* envelope) {
    for (int i = 0; i < size_; ++i) {
      const int source = next_;
      next_ = (next_ + 1) % size_;
      if (source == rank_) {
        if (own_.empty()) continue;
        *envelope = {rank_, own_.front().tag, own_.front().bytes};
      } else {
        const bool found = peers_[source]->announce(envelope, &done_);
        watch_writes(*peers_[source]);  // it may have answered
        if (!found) continue;
      }
      taken_ = source;
      return true;
    }
    return false;
  }

  void check_machines() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_check_) return;
    next_check_ = now + kBetweenChecks;
    for (const auto& peer : peers_) {
      if (peer) peer->check_machine(&done_);
    }
  }

  // Moves everything on that the kernel is ready for.
  void look() {
    looked_ = true;
    if (size_ == 1) return;
    check_machines();
    for (const auto& peer : peers_) {
      if (!peer || !(peer->copies() || peer->dropped())) continue;
      peer->copy(&done_);
      peer->cut_when_due(&done_);
      watch_writes(*peer);
    }
    epoll_event events[kEventsPerLook];
    const int count = ::epoll_wait(epoll_, events, kEventsPerLook, 0);
    for (int i = 0; i < count; ++i) {
      SocketPeer& peer = *peers_[events[i].data.u32];
      if ((events[i].events & ~static_cast<unsigned>(EPOLLOUT)) != 0) {
        peer.set_readable();
        peer.read(&done_);
      }
      if ((events[i].events & EPOLLOUT) != 0) peer.flush(&done_);
      if (peer.at_end()) {
        ::epoll_ctl(epoll_, EPOLL_CTL_DEL, peer.fd(), nullptr);
      } else {
        watch_writes(peer);
      }
    }
  }

  void watch_writes(SocketPeer& peer) {
    if (peer.queues() == writes_[peer.rank()] || peer.at_end()) return;
    writes_[peer.rank()] = peer.queues();
    watch(peer, EPOLL_CTL_MOD);
  }

  void watch(SocketPeer& peer, int operation) {
    epoll_event event{};
    event.events = EPOLLIN | (peer.queues() ? EPOLLOUT : 0u);
    event.data.u32 = static_cast<std::uint32_t>(peer.rank());
    if (::epoll_ctl(epoll_, operation, peer.fd(), &event) != 0) {
      throw std::runtime_error("the connection to worker " +
                               std::to_string(peer.rank()) +
                               " cannot be watched: " + std::strerror(errno));
    }
  }

  const int rank_, size_, max_tag_;
  int epoll_ = -1;
  std::vector<std::unique_ptr<SocketPeer>> peers_;  // by rank; null for oneself
  std::vector<bool> writes_;                        // by rank: EPOLLOUT is asked for
  std::vector<bool> told_;  // by rank: it was said that it is gone
  std::deque<OwnMessage> own_;
  int next_ = 0, taken_ = 0;
  bool looked_ = false;  // since the last poll()
  std::chrono::steady_clock::time_point next_check_;
  Ids done_;  // to be reported
  std::size_t pending_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_socket_transport(int rank, std::vector<int> fds,
                                                 int most) {
  return std::make_unique<SocketTransport>(rank, std::move(fds), most);
}

}  // namespace codedgrad
