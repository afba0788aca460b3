#include "transport/local_transport.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace codedgrad {

namespace {

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, int rank)
      : hub_(std::move(hub)), rank_(rank) {
    if (rank < 0 || rank >= hub_->size) {
      throw std::runtime_error("rank " + std::to_string(rank) + " is not in a hub of " +
                               std::to_string(hub_->size));
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return hub_->size; }
  int max_tag() const override { return hub_->max_tag; }

  void send(int dest, int tag, const void* data, std::size_t bytes,
            std::uint64_t id) override {
    if (dest < 0 || dest >= hub_->size || tag < 0 || tag > hub_->max_tag) {
      throw std::runtime_error("there is no rank " + std::to_string(dest) +
                               " or no tag " + std::to_string(tag));
    }
    std::lock_guard<std::mutex> lock(hub_->mutex);
    const auto visible = hub_->visible_from(rank_, dest);
    hub_->inbox[dest][rank_].push_back({{rank_, tag, bytes}, data, id, visible});
    ++pending_sends_;
  }

  bool probe(Envelope* envelope) override {
    const auto now = std::chrono::steady_clock::now();
    std::lock_guard<std::mutex> lock(hub_->mutex);
    auto& inbox = hub_->inbox[rank_];
    auto place = inbox.upper_bound(next_);  // after the source of the last message
    for (std::size_t i = 0; i < inbox.size(); ++i, ++place) {
      if (place == inbox.end()) place = inbox.begin();
      auto& queue = place->second;
      if (queue.empty() || queue.front().visible > now) continue;
      next_ = place->first;
      taken_ = queue.front();
      queue.pop_front();
      *envelope = taken_.envelope;
      return true;
    }
    return false;
  }

  void receive(void* into, std::uint64_t id) override {
    std::lock_guard<std::mutex> lock(hub_->mutex);
    receives_.push_back({taken_, into, id, hub_->soon()});
  }

  void poll(std::vector<std::uint64_t>* done) override {
    const auto now = std::chrono::steady_clock::now();
    std::vector<Receive> due;
    for (std::size_t i = receives_.size(); i-- > 0;) {
      if (receives_[i].ready > now) continue;
      due.push_back(receives_[i]);
      receives_.erase(receives_.begin() + i);
    }
    for (const auto& [message, into, id, ready] : due) {
      if (message.envelope.bytes > 0) {
        std::memcpy(into, message.data, message.envelope.bytes);
      }
      done->push_back(id);
    }
    std::lock_guard<std::mutex> lock(hub_->mutex);
    for (const Receive& receive : due) {
      hub_->sent[receive.message.envelope.source].push_back(receive.message.id);
    }
    auto& sent = hub_->sent[rank_];
    done->insert(done->end(), sent.begin(), sent.end());
    pending_sends_ -= sent.size();
    sent.clear();
  }

  std::size_t pending() const override { return pending_sends_ + receives_.size(); }

 private:
  struct Receive {
    LocalMessage message;
    void* into;
    std::uint64_t id;
    std::chrono::steady_clock::time_point ready;
  };
  std::shared_ptr<LocalHub> hub_;
  const int rank_;
  int next_ = 0;
  LocalMessage taken_;
  std::deque<Receive> receives_;  // that are under way
  std::size_t pending_sends_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub,
                                                int rank) {
  return std::make_unique<LocalTransport>(std::move(hub), rank);
}

}  // namespace codedgrad
